"""Samples the next tokens of a whole batch: temperature, nucleus sampling (top-p), excluded tokens.

The batched form of `sampling_rule.draw`: temperature, then top-p, then the excluded tokens, then inverse-CDF sampling
with each row's own uniform number. A vocabulary can have 80 tokens or 152,000. Therefore no row is sorted unless top-p
needs it, the cumulative sum has two levels, and a large batch is processed in blocks of rows that fit the processor's
cache. Invariant: what a row draws does not depend on the other rows.

    tokens, logprobs, sampled_logprobs = draw_batch(logits_AV, samplings, uniforms, excluded={3: (17,)})

Shapes: A rows, R rows of one block, V tokens of the vocabulary, K most probable tokens, W tokens of one segment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from flow_dpo.core.types import Sampling, TokenIds
from flow_dpo.engines.local.small_vocabulary import draw_small
from flow_dpo.engines.sampling_rule import GOLDEN, MIX_1, MIX_2

_BLOCK_ELEMENTS = 1 << 18
"""Number of logits in one block on a CPU: 1 MiB in float32, about a core's second-level cache."""
_SEGMENT = 1024
"""Tokens in one segment of the two-level cumulative sum; for top-p, a vocabulary up to this size is sorted whole."""
_LIKELIEST = (128, 4096)
"""Numbers of most probable tokens in which the nucleus is searched before a whole row is sorted."""

Draws = tuple[list[int], list[float], list[float]]
"""Tokens (-1 if none was left to draw), their log-probabilities, and those after temperature and top-p."""


def uniforms(streams: Sequence[int], positions: Sequence[int]) -> list[float]:
    """`sampling_rule.uniform` for each of these streams (`sampling_rule.stream` of a seed) at its position."""
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
    num_tokens: int | None = None,
) -> Draws:
    """Draw one token for each row of logits. `excluded` maps rows to the tokens that they exclude; ids from
    `num_tokens` on are never drawn."""
    num_rows, vocab_size = logits_AV.shape
    if num_tokens is not None and num_tokens < vocab_size:
        kept = {row: tuple(id for id in ids if id < num_tokens) for row, ids in (excluded or {}).items()}
        tokens, logprobs, sampled_logprobs = draw_batch(logits_AV[:, :num_tokens], samplings, uniforms, kept)
        return tokens, _among_all(logits_AV, num_tokens, tokens, logprobs), sampled_logprobs
    # 1. Rows with and without top-p are in different blocks; on a CPU a block has at most `size` rows.
    size = max(1, _BLOCK_ELEMENTS // vocab_size) if logits_AV.device.type == "cpu" else num_rows
    truncated = [row for row, sampling in enumerate(samplings) if sampling.top_p < 1]
    if num_rows <= size and len(truncated) in (0, num_rows):
        return _lists(_Block(logits_AV, samplings, uniforms, excluded or {}).draw())
    if 0 < len(truncated) < num_rows:
        order = [row for row, sampling in enumerate(samplings) if sampling.top_p >= 1]
        blocks = [group[low : low + size] for group in (order, truncated) for low in range(0, len(group), size)]
    else:
        blocks = [range(low, min(low + size, num_rows)) for low in range(0, num_rows, size)]
    # 2. Draw block by block into one result.
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


def _among_all(
    logits_AV: torch.Tensor, num_tokens: int, tokens: Sequence[int], logprobs: Sequence[float]
) -> list[float]:
    """Turns log-probabilities among the first `num_tokens` ids into log-probabilities among all ids."""
    token_A1 = torch.tensor(tokens, device=logits_AV.device)[:, None].clamp(min=0)
    logprob_A = torch.tensor(logprobs, dtype=torch.float64, device=logits_AV.device)
    rest_A = logits_AV[:, num_tokens:].double().logsumexp(-1)
    own_A = logits_AV.gather(1, token_A1)[:, 0].double() - logprob_A
    return (logprob_A - torch.logaddexp(own_A, rest_A) + own_A).tolist()


def _lists(drawn_3A: torch.Tensor) -> Draws:
    tokens, logprobs, sampled_logprobs = drawn_3A.tolist()
    return list(map(int, tokens)), logprobs, sampled_logprobs


class _Block:
    """Rows that are sampled together: all of them with top-p, or all without."""

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
        """Token, log-probability and sampled log-probability of each row, 3R."""
        if self.samplings[0].top_p >= 1:
            return self._from_all()
        if self.device.type == "cpu" and self.logits_RV.shape[1] <= _SEGMENT:
            return self._from_small()
        return self._from_nucleus()

    def _from_small(self) -> torch.Tensor:
        """With top-p, from a small vocabulary (`small_vocabulary` says why that is a separate path)."""
        raw_RV = self.raw_RV.numpy()
        probs_RV = raw_RV if self.probs_RV is self.raw_RV else self.probs_RV.numpy()
        drawn_3R = draw_small(raw_RV, probs_RV, self.samplings, self.uniform_R1[:, 0].tolist(), self.excluded)
        return torch.from_numpy(drawn_3R)

    def _from_all(self) -> torch.Tensor:
        """Without top-p: no sorting."""
        # 1. Excluded tokens lose their probability. They are never read again, so writing into `raw_RV` is safe.
        for row, tokens in self.excluded.items():
            self.probs_RV[row, list(tokens)] = 0
        # 2. The most probable token for greedy rows, inverse-CDF sampling for the others.
        if all(sampling.greedy for sampling in self.samplings):
            token_R1 = self._likeliest()
        else:
            token_R1 = _locate(self.probs_RV, self.uniform_R1)
            if any(sampling.greedy for sampling in self.samplings):
                token_R1 = torch.where(self._greedy(), self._likeliest(), token_R1)
        return self._result(token_R1, self.probs_RV.gather(1, token_R1), None, None)

    def _from_nucleus(self) -> torch.Tensor:
        """With top-p: search the nucleus among the K most probable tokens; rows that need more get a larger K."""
        vocab_size = self.logits_RV.shape[1]
        unsettled = list(range(len(self.samplings)))
        drawn_3R = torch.empty(3, len(unsettled), dtype=torch.float64, device=self.device)
        for num_ranked in (*_LIKELIEST, vocab_size) if vocab_size > _SEGMENT else (vocab_size,):
            logits_RV = self.logits_RV if len(unsettled) == len(self.samplings) else self.logits_RV[unsettled]
            logits_RK, ids_RK = _ranked(logits_RV, min(num_ranked, vocab_size))
            drawn_3R[:, unsettled], still_unsettled = self._from_ranked(logits_RK, ids_RK, unsettled)
            unsettled = [unsettled[index] for index in still_unsettled]
            if not unsettled:
                break
        return drawn_3R

    def _from_ranked(
        self, logits_RK: torch.Tensor, ids_RK: torch.Tensor, rows: list[int]
    ) -> tuple[torch.Tensor, list[int]]:
        """Draw for these rows among their K most probable tokens, ranked; also return the rows that need a larger K."""
        # 1. Cumulative probability by rank: logits_RK, descending, with their token ids ids_RK.
        num_ranked = logits_RK.shape[1]
        row_R1 = torch.tensor(rows, device=self.device)[:, None]
        probs_RK = self.probs_RV[row_R1, ids_RK]
        cumulative_RK = probs_RK.cumsum(-1, dtype=torch.float64)
        # 2. The nucleus ends at the first rank whose cumulative probability reaches top-p: last_R1 is that rank,
        #    mass_R1 the nucleus' probability.
        top_p_R1 = self._column([self.samplings[row].top_p for row in rows])
        last_R1 = (cumulative_RK < top_p_R1).sum(-1, keepdim=True).clamp_(max=num_ranked - 1)
        mass_R1 = cumulative_RK.gather(1, last_R1)
        probs_RK = probs_RK.where(torch.arange(num_ranked, device=self.device) <= last_R1, 0)
        # 3. Excluded tokens lose their probability; the mass of the nucleus stays as it was. If no token is left in it,
        #    the most probable other one is drawn.
        for index, row in enumerate(rows):
            if row in self.excluded:
                allowed_K = ~torch.isin(ids_RK[index], torch.tensor(self.excluded[row], device=self.device))
                probs_RK[index] *= allowed_K
                if not probs_RK[index].any() and allowed_K.any():
                    first = allowed_K.int().argmax()
                    probs_RK[index, first] = self.probs_RV[row, ids_RK[index, first]]
        # 4. Inverse-CDF sampling in ascending order of ids, as in `sampling_rule`, mapped back to ranks.
        order_RK = ids_RK.argsort(-1)
        cumulative_by_id_RK = probs_RK.gather(1, order_RK).cumsum(-1, dtype=torch.float64)
        rank_R1 = order_RK.gather(1, _first_above(cumulative_by_id_RK, self.uniform_R1[rows]))
        # 5. Greedy rows take the first of the most probable tokens.
        rank_R1 = torch.where(self._greedy()[rows], probs_RK.argmax(-1, keepdim=True), rank_R1)
        drawn_3R = self._result(ids_RK.gather(1, rank_R1), probs_RK.gather(1, rank_R1), mass_R1, row_R1)
        # 6. Unsettled: K tokens do not reach top-p, the last one in the nucleus ties with the K-th (more may tie), or
        #    all K are excluded.
        if num_ranked == self.logits_RV.shape[1]:
            return drawn_3R, []
        unsettled_R1 = (mass_R1 < top_p_R1) | (logits_RK.gather(1, last_R1) == logits_RK[:, -1:])
        unsettled_R1 |= ~probs_RK.any(-1, keepdim=True)
        return drawn_3R, unsettled_R1[:, 0].nonzero()[:, 0].tolist()

    def _result(
        self, token_R1: torch.Tensor, prob_R1: torch.Tensor, mass_R1: torch.Tensor | None, row_R1: torch.Tensor | None
    ) -> torch.Tensor:
        """Token, and log-probabilities before and after temperature and top-p, 3R; `mass_R1` is the nucleus' mass."""
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
        """The most probable token, the first of equal ones: R1. Three times as fast as `argmax` over 150,000 tokens."""
        is_peak_RV = self.probs_RV == self.probs_RV.amax(-1, keepdim=True)
        vocab_size = self.probs_RV.shape[1]
        ids_V = torch.arange(vocab_size, dtype=torch.int32, device=self.device)
        return torch.where(is_peak_RV, ids_V, vocab_size - 1).amin(-1, keepdim=True).long()

    def _greedy(self) -> torch.Tensor:
        return torch.tensor([[sampling.greedy] for sampling in self.samplings], device=self.device)

    def _column(self, values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, device=self.device)[:, None]


def _ranked(values_RV: torch.Tensor, num_ranked: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest values, descending, and their indices: RK. Among equal values the lower index comes first."""
    if num_ranked == values_RV.shape[1]:
        return torch.sort(values_RV, dim=-1, descending=True, stable=True)
    values_RK, ids_RK = values_RV.topk(num_ranked, -1)
    # `topk` leaves equal values in any order.
    ids_RK, order_RK = ids_RK.sort(-1)
    values_RK, order_RK = torch.sort(values_RK.gather(1, order_RK), dim=-1, descending=True, stable=True)
    return values_RK, ids_RK.gather(1, order_RK)


def _locate(weights_RV: torch.Tensor, uniform_R1: torch.Tensor) -> torch.Tensor:
    """The first token at which the cumulative weight exceeds `uniform` times the total weight: R1."""
    vocab_size = weights_RV.shape[1]
    if vocab_size <= _SEGMENT:
        return _first_above(weights_RV.cumsum(-1, dtype=torch.float64), uniform_R1)
    # 1. Weight of each segment of W tokens, the last one shorter.
    whole = vocab_size // _SEGMENT * _SEGMENT
    segments = [weights_RV[:, :whole].unflatten(1, (-1, _SEGMENT)).sum(-1)]
    if whole < vocab_size:
        segments.append(weights_RV[:, whole:].sum(-1, keepdim=True))
    sums = torch.cat(segments, 1).double()
    cumulative = sums.cumsum(-1)
    # 2. The segment in which the cumulative weight passes the target.
    segment_R1 = _first_above(cumulative, uniform_R1)
    before_R1 = cumulative.gather(1, segment_R1) - sums.gather(1, segment_R1)
    # 3. The token inside that segment: RW.
    ids_RW = segment_R1 * _SEGMENT + torch.arange(_SEGMENT, device=weights_RV.device)
    inside_RW = weights_RV.gather(1, ids_RW.clamp(max=vocab_size - 1)) * (ids_RW < vocab_size)
    cumulative_RW = inside_RW.cumsum(-1, dtype=torch.float64)
    # The segment's own sum was rounded differently: a share of it is used, so that the last token is never passed.
    share_R1 = (uniform_R1 * cumulative[:, -1:] - before_R1) / sums.gather(1, segment_R1)
    return segment_R1 * _SEGMENT + _first_above(cumulative_RW, share_R1.clamp(0, 1 - 2.0**-53))


def _first_above(cumulative: torch.Tensor, share_R1: torch.Tensor) -> torch.Tensor:
    """The first index whose cumulative weight exceeds this share, in [0, 1), of the total: R1.

    Tokens without weight are never found: `share * last` rounds to less than `last`, so an earlier token exceeds it.
    """
    return torch.searchsorted(cumulative, share_R1 * cumulative[:, -1:], right=True).clamp_(max=cumulative.shape[1] - 1)
