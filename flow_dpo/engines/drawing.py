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

from flow_dpo.engines.chance import GOLDEN, MIX_1, MIX_2
from flow_dpo.types import Sampling, TokenIds

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
        drawn_3A[:, at] = block.from_nucleus() if block.samplings[0].top_p < 1 else block.from_all()
    tokens, logprobs, sampled_logprobs = drawn_3A.tolist()
    return [int(token) for token in tokens], logprobs, sampled_logprobs


class _Block:
    """Rows that are drawn together: either all of them with top-p, or none."""

    def __init__(
        self,
        logits_RV: torch.Tensor,
        samplings: Sequence[Sampling],
        uniforms: Sequence[float],
        excluded: Mapping[int, TokenIds],
    ) -> None:
        self.samplings, self.excluded = samplings, excluded
        self.device = logits_RV.device
        self.uniform_R1 = self._column(uniforms)
        shifted_RV = logits_RV.float()
        self.raw_RV = shifted_RV - shifted_RV.amax(-1, keepdim=True)
        temperatures = {sampling.temperature for sampling in samplings}
        weights_RV = self.raw_RV.exp()
        self.raw_total_R1 = weights_RV.sum(-1, keepdim=True)
        if temperatures == {1.0}:
            self.scaled_RV, self.weights_RV = self.raw_RV, weights_RV
            self.total_R1 = self.raw_total_R1
        else:
            only = temperatures.pop() if len(temperatures) == 1 else None
            divisor = self._column([sampling.temperature for sampling in samplings]).float() if only is None else only
            self.scaled_RV = self.raw_RV / divisor
            self.weights_RV = torch.exp(self.scaled_RV, out=weights_RV)
            self.total_R1 = self.weights_RV.sum(-1, keepdim=True)

    def from_all(self) -> torch.Tensor:
        """Draw without top-p: 3R."""
        for row, tokens in self.excluded.items():
            self.weights_RV[row, list(tokens)] = 0
        if all(sampling.greedy for sampling in self.samplings):
            token_R1 = self._likeliest()
        else:
            token_R1 = _locate(self.weights_RV, self.uniform_R1)
            if any(sampling.greedy for sampling in self.samplings):
                token_R1 = torch.where(self._greedy(), self._likeliest(), token_R1)
        left_R1 = self.weights_RV.gather(1, token_R1) > 0
        return self._result(token_R1, self.total_R1, left_R1, list(range(len(self.samplings))))

    def from_nucleus(self) -> torch.Tensor:
        """Draw with top-p: 3R. Rows whose set may go beyond the likeliest few words are tried with more of them."""
        num_words = self.scaled_RV.shape[1]
        short = list(range(len(self.samplings)))
        drawn_3R = torch.empty(3, len(short), dtype=torch.float64, device=self.device)
        for num_ranked in (*_LIKELIEST, num_words) if num_words > _SEGMENT else (num_words,):
            scores_RV = self.scaled_RV if len(short) == len(self.samplings) else self.scaled_RV[short]
            values_RK, ids_RK = _ranked(scores_RV, min(num_ranked, num_words))
            drawn_3R[:, short], still_short = self._from_ranked(values_RK, ids_RK, short)
            short = [short[index] for index in still_short]
            if not short:
                break
        return drawn_3R

    def _from_ranked(
        self, values_RK: torch.Tensor, ids_RK: torch.Tensor, at: list[int]
    ) -> tuple[torch.Tensor, list[int]]:
        """Draw for the rows `at` from their likeliest words, in falling order; also name the rows that need more."""
        num_ranked, num_words = values_RK.shape[1], self.scaled_RV.shape[1]
        weights_RK = values_RK.exp()
        reached_RK = weights_RK.cumsum(-1, dtype=torch.float64)
        wanted_R1 = self._column([self.samplings[row].top_p for row in at]) * self.total_R1[at]
        last_R1 = (reached_RK < wanted_R1).sum(-1, keepdim=True).clamp(max=num_ranked - 1)
        mass_R1 = reached_RK.gather(1, last_R1)
        weights_RK = weights_RK.where(torch.arange(num_ranked, device=self.device) <= last_R1, 0)
        for index, row in enumerate(at):
            if row in self.excluded:
                gone = torch.tensor(self.excluded[row], device=self.device)
                weights_RK[index, torch.isin(ids_RK[index], gone)] = 0
        ids_sorted_RK, order_RK = ids_RK.sort(-1)
        found_R1 = _first_above(weights_RK.gather(1, order_RK).cumsum(-1, dtype=torch.float64), self.uniform_R1[at])
        token_R1 = ids_sorted_RK.gather(1, found_R1)
        greedy_R1 = self._greedy()[at]
        token_R1 = torch.where(greedy_R1, ids_RK.gather(1, weights_RK.argmax(-1, keepdim=True)), token_R1)
        drawn_3R = self._result(token_R1, mass_R1, weights_RK.sum(-1, keepdim=True) > 0, at)
        if num_ranked == num_words:
            return drawn_3R, []
        short_R1 = (mass_R1 < wanted_R1) | (values_RK.gather(1, last_R1) == values_RK[:, -1:])
        return drawn_3R, short_R1[:, 0].nonzero()[:, 0].tolist()

    def _result(
        self, token_R1: torch.Tensor, mass_R1: torch.Tensor, left_R1: torch.Tensor, at: list[int]
    ) -> torch.Tensor:
        row_R1 = torch.tensor(at, device=self.device)[:, None]
        raw_R1 = self.raw_RV[row_R1, token_R1] - self.raw_total_R1[at].log()
        sampled_R1 = self.scaled_RV[row_R1, token_R1] - mass_R1.log()
        drawn_R3 = torch.cat([token_R1.where(left_R1, -1).double(), raw_R1.double(), sampled_R1.double()], 1)
        drawn_R3[:, 1:].clamp_(max=0)
        return drawn_R3.T

    def _likeliest(self) -> torch.Tensor:
        """Arg max of the scores themselves: their exponentials may tie where they do not."""
        scores_RV = self.raw_RV.clone() if self.excluded else self.raw_RV
        for row, tokens in self.excluded.items():
            scores_RV[row, list(tokens)] = -torch.inf
        return scores_RV.argmax(-1, keepdim=True)

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
    return segment_R1 * _SEGMENT + _first_above(reached_RW, share_R1)


def _first_above(reached: torch.Tensor, share_R1: torch.Tensor) -> torch.Tensor:
    """The first index whose cumulative weight exceeds this share of the last; words without weight are never found."""
    total_R1 = reached[:, -1:]
    wanted_R1 = torch.minimum(share_R1 * total_R1, torch.nextafter(total_R1, torch.zeros_like(total_R1)))
    return torch.searchsorted(reached, wanted_R1, right=True).clamp(max=reached.shape[1] - 1)
