"""How are the next tokens of a whole batch drawn?

`chance.draw` for every row at once: temperature, then top-p, then the excluded tokens, then the inverse of the
cumulative sum at each row's own number. A vocabulary may have 80 words or 152,000, so no row is sorted unless top-p
needs it, the cumulative sum has two levels, and a large batch is worked off in blocks of rows that fit the processor's
cache. Invariant: what a row draws does not depend on the other rows.

    tokens, logprobs, sampled_logprobs = draw_batch(logits_AV, samplings, uniforms, excluded={3: (17,)})

Shapes: A rows, R rows of one block, V words of the vocabulary, K likeliest words, W words of one segment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from flow_dpo.core.types import Sampling, TokenIds
from flow_dpo.engines.sampling_rule import GOLDEN, MIX_1, MIX_2

_BLOCK_ELEMENTS = 1 << 18
"""Logits that are worked on together on a CPU: one mebibyte of float32, about a core's second-level cache."""
_SEGMENT = 1024
"""Words of one segment of the two-level cumulative sum; a vocabulary up to this size is sorted whole for top-p."""
_LIKELIEST = (128, 4096)
"""Words among which top-p's set is looked for, before a whole row is sorted."""

Draws = tuple[list[int], list[float], list[float]]
"""Tokens (-1 where nothing was left to draw), their log-probabilities, and those under temperature and top-p."""


def uniforms(streams: Sequence[int], positions: Sequence[int]) -> list[float]:
    """`chance.uniform` for each of these streams (`chance.stream` of a seed) at its position."""
    z = np.array(positions, dtype=np.uint64) + np.uint64(1)
    z = np.array(streams, dtype=np.uint64) + z * np.uint64(GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(MIX_1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(MIX_2)
    z = z ^ (z >> np.uint64(31))
    return ((z >> np.uint64(11)) * 2.0**-53).tolist()


def draw_batch(
    logits_AV: torch.Tensor,
    samplings: Sequence[Sampling],
    uniforms: Sequence[float],
    excluded: Mapping[int, TokenIds] | None = None,
) -> Draws:
    """Draw one token for each row. `excluded` names the rows that exclude something."""
    num_rows, num_words = logits_AV.shape
    size = max(1, _BLOCK_ELEMENTS // num_words) if logits_AV.device.type == "cpu" else num_rows
    truncated = [row for row, sampling in enumerate(samplings) if sampling.top_p < 1]
    if num_rows <= size and len(truncated) in (0, num_rows):
        return _lists(_Block(logits_AV, samplings, uniforms, excluded or {}).draw())
    if 0 < len(truncated) < num_rows:
        order = [row for row, sampling in enumerate(samplings) if sampling.top_p >= 1]
        blocks = [group[at : at + size] for group in (order, truncated) for at in range(0, len(group), size)]
    else:
        blocks = [range(at, min(at + size, num_rows)) for at in range(0, num_rows, size)]
    drawn_3A = torch.empty(3, num_rows, dtype=torch.float64, device=logits_AV.device)
    for rows in blocks:
        at = slice(rows[0], rows[-1] + 1) if isinstance(rows, range) else torch.tensor(rows, device=logits_AV.device)
        block = _Block(
            logits_AV[at],
            [samplings[row] for row in rows],
            [uniforms[row] for row in rows],
            {index: excluded[row] for index, row in enumerate(rows) if row in excluded} if excluded else {},
        )
        drawn_3A[:, at] = block.draw()
    return _lists(drawn_3A)


def _lists(drawn_3A: torch.Tensor) -> Draws:
    tokens, logprobs, sampled_logprobs = drawn_3A.tolist()
    return list(map(int, tokens)), logprobs, sampled_logprobs


class _Block:
    """Rows that are drawn together: either all of them with top-p, or none."""

    def __init__(
        self,
        logits_RV: torch.Tensor,
        samplings: Sequence[Sampling],
        uniforms: Sequence[float],
        excluded: Mapping[int, TokenIds],
    ) -> None:
        self.logits_RV, self.samplings, self.excluded = logits_RV, samplings, excluded
        self.device = logits_RV.device
        self.uniform_R1 = self._column(uniforms)
        self.raw_RV = logits_RV.softmax(-1, dtype=torch.float32)
        temperatures = {sampling.temperature for sampling in samplings}
        if temperatures == {1.0}:
            self.probs_RV = self.raw_RV
        else:
            column_R1 = self._column([sampling.temperature for sampling in samplings]).float()
            temperature = temperatures.pop() if len(temperatures) == 1 else column_R1
            self.probs_RV = (logits_RV.float() / temperature).softmax(-1)

    def draw(self) -> torch.Tensor:
        """Token, log-probability and sampled log-probability of each row: 3R."""
        return self._from_nucleus() if self.samplings[0].top_p < 1 else self._from_all()

    def _from_all(self) -> torch.Tensor:
        # The excluded words themselves are never asked for again, so this may write into `raw_RV` too.
        for row, tokens in self.excluded.items():
            self.probs_RV[row, list(tokens)] = 0
        if all(sampling.greedy for sampling in self.samplings):
            token_R1 = self._likeliest()
        else:
            token_R1 = _locate(self.probs_RV, self.uniform_R1)
            if any(sampling.greedy for sampling in self.samplings):
                token_R1 = torch.where(self._greedy(), self._likeliest(), token_R1)
        return self._result(token_R1, self.probs_RV.gather(1, token_R1), None, None)

    def _from_nucleus(self) -> torch.Tensor:
        """Rows whose set may go beyond the likeliest few words are tried with more of them."""
        num_words = self.logits_RV.shape[1]
        short = list(range(len(self.samplings)))
        drawn_3R = torch.empty(3, len(short), dtype=torch.float64, device=self.device)
        for num_ranked in (*_LIKELIEST, num_words) if num_words > _SEGMENT else (num_words,):
            logits_RV = self.logits_RV if len(short) == len(self.samplings) else self.logits_RV[short]
            logits_RK, ids_RK = _ranked(logits_RV, min(num_ranked, num_words))
            drawn_3R[:, short], still_short = self._from_ranked(logits_RK, ids_RK, short)
            short = [short[index] for index in still_short]
            if not short:
                break
        return drawn_3R

    def _from_ranked(
        self, logits_RK: torch.Tensor, ids_RK: torch.Tensor, at: list[int]
    ) -> tuple[torch.Tensor, list[int]]:
        """Draw for the rows `at` from their likeliest words, in falling order; also name the rows that need more."""
        num_ranked = logits_RK.shape[1]
        row_R1 = torch.tensor(at, device=self.device)[:, None]
        probs_RK = self.probs_RV[row_R1, ids_RK]
        reached_RK = probs_RK.cumsum(-1, dtype=torch.float64)
        wanted_R1 = self._column([self.samplings[row].top_p for row in at])
        last_R1 = (reached_RK < wanted_R1).sum(-1, keepdim=True).clamp_(max=num_ranked - 1)
        mass_R1 = reached_RK.gather(1, last_R1)
        probs_RK = probs_RK.where(torch.arange(num_ranked, device=self.device) <= last_R1, 0)
        for index, row in enumerate(at):
            if row in self.excluded:
                gone = torch.tensor(self.excluded[row], device=self.device)
                probs_RK[index, torch.isin(ids_RK[index], gone)] = 0
        order_RK = ids_RK.argsort(-1)
        reached_sorted_RK = probs_RK.gather(1, order_RK).cumsum(-1, dtype=torch.float64)
        rank_R1 = order_RK.gather(1, _first_above(reached_sorted_RK, self.uniform_R1[at]))
        rank_R1 = torch.where(self._greedy()[at], probs_RK.argmax(-1, keepdim=True), rank_R1)
        drawn_3R = self._result(ids_RK.gather(1, rank_R1), probs_RK.gather(1, rank_R1), mass_R1, row_R1)
        if num_ranked == self.logits_RV.shape[1]:
            return drawn_3R, []
        short_R1 = (mass_R1 < wanted_R1) | (logits_RK.gather(1, last_R1) == logits_RK[:, -1:])
        return drawn_3R, short_R1[:, 0].nonzero()[:, 0].tolist()

    def _result(
        self, token_R1: torch.Tensor, prob_R1: torch.Tensor, mass_R1: torch.Tensor | None, row_R1: torch.Tensor | None
    ) -> torch.Tensor:
        """What was drawn (in these rows), with what probability, of the `mass` that top-p kept."""
        sampled_R1 = prob_R1.double().log()
        if self.probs_RV is self.raw_RV:
            raw_R1 = sampled_R1
        else:
            raw_R1 = (
                (self.raw_RV.gather(1, token_R1) if row_R1 is None else self.raw_RV[row_R1, token_R1]).double().log()
            )
        if mass_R1 is not None:
            sampled_R1 = sampled_R1 - mass_R1.log()
        drawn_3R1 = torch.stack([token_R1.where(prob_R1 > 0, -1).double(), raw_R1, sampled_R1])
        drawn_3R1[1:].clamp_(max=0)
        return drawn_3R1[..., 0]

    def _likeliest(self) -> torch.Tensor:
        """The likeliest word, the first of equal ones. Three times as fast as `argmax` over a large vocabulary."""
        is_peak_RV = self.probs_RV == self.probs_RV.amax(-1, keepdim=True)
        num_words = self.probs_RV.shape[1]
        ids_V = torch.arange(num_words, dtype=torch.int32, device=self.device)
        return torch.where(is_peak_RV, ids_V, num_words - 1).amin(-1, keepdim=True).long()

    def _greedy(self) -> torch.Tensor:
        return torch.tensor([[sampling.greedy] for sampling in self.samplings], device=self.device)

    def _column(self, values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, device=self.device)[:, None]


def _ranked(values_RV: torch.Tensor, num_ranked: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest values in falling order and where they stand; of equal ones, the first first."""
    if num_ranked == values_RV.shape[1]:
        return torch.sort(values_RV, dim=-1, descending=True, stable=True)
    values_RK, ids_RK = values_RV.topk(num_ranked, -1)
    # `topk` leaves equal values in any order.
    ids_RK, order_RK = ids_RK.sort(-1)
    values_RK, order_RK = torch.sort(values_RK.gather(1, order_RK), dim=-1, descending=True, stable=True)
    return values_RK, ids_RK.gather(1, order_RK)


def _locate(weights_RV: torch.Tensor, uniform_R1: torch.Tensor) -> torch.Tensor:
    """The first word at which the summed weight exceeds `uniform` times all weight: R1."""
    num_words = weights_RV.shape[1]
    if num_words <= _SEGMENT:
        return _first_above(weights_RV.cumsum(-1, dtype=torch.float64), uniform_R1)
    whole = num_words // _SEGMENT * _SEGMENT
    segments = [weights_RV[:, :whole].unflatten(1, (-1, _SEGMENT)).sum(-1)]
    if whole < num_words:
        segments.append(weights_RV[:, whole:].sum(-1, keepdim=True))
    sums = torch.cat(segments, 1).double()
    reached = sums.cumsum(-1)
    segment_R1 = _first_above(reached, uniform_R1)
    before_R1 = reached.gather(1, segment_R1) - sums.gather(1, segment_R1)
    ids_RW = segment_R1 * _SEGMENT + torch.arange(_SEGMENT, device=weights_RV.device)
    inside_RW = weights_RV.gather(1, ids_RW.clamp(max=num_words - 1)) * (ids_RW < num_words)
    reached_RW = inside_RW.cumsum(-1, dtype=torch.float64)
    # The segment's own sum was rounded otherwise: take the share of it, so that the last word is not overrun.
    share_R1 = (uniform_R1 * reached[:, -1:] - before_R1) / sums.gather(1, segment_R1)
    return segment_R1 * _SEGMENT + _first_above(reached_RW, share_R1.clamp(0, 1 - 2.0**-53))


def _first_above(reached: torch.Tensor, share_R1: torch.Tensor) -> torch.Tensor:
    """The first index whose cumulative weight exceeds this share, in [0, 1), of the last.

    Words without weight are never found: `share * last` rounds to less than `last`, so some word exceeds it first.
    """
    return torch.searchsorted(reached, share_R1 * reached[:, -1:], right=True).clamp_(max=reached.shape[1] - 1)
