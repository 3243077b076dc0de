"""Nucleus sampling from a small vocabulary on a CPU, in numpy: there, calls cost more than arithmetic.

    drawn_3R = draw_small(raw_RV, probs_RV, samplings, uniforms, excluded={3: (17,)})

The rule is that of `sampling_rule.draw` and `local.sampling`. If one token alone reaches top-p, it is the nucleus, and
nothing is sorted; for a trained model that is the most common case.

Shapes: R rows, U of them with a larger nucleus; V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from flow_dpo.core.types import Sampling, TokenIds

Floats = npt.NDArray[np.floating]


def draw_small(
    raw_RV: Floats,
    probs_RV: Floats,
    samplings: Sequence[Sampling],
    uniforms: Sequence[float],
    excluded: Mapping[int, TokenIds],
) -> Floats:
    """Token (-1 if none is left), log-probability and sampled log-probability of each row, 3R.

    `raw_RV` are the model's probabilities and `probs_RV` those at each row's temperature, in float32; both can be the
    same array. `excluded` maps rows to tokens that must not be drawn.
    """
    num_rows = len(samplings)
    row_R = np.arange(num_rows)
    # 1. Rows whose most probable token is the whole nucleus.
    token_R = probs_RV.argmax(1)
    mass_R = probs_RV[row_R, token_R].astype(np.float64)
    prob_R = mass_R.copy()
    top_p_R = np.array([sampling.top_p for sampling in samplings])
    unsure_R = ~(mass_R >= top_p_R)  # also if it is not a number
    unsure_R[list(excluded)] = True
    row_U = np.flatnonzero(unsure_R)
    # 2. The other rows by inverse-CDF sampling.
    if len(row_U):
        tokens = [excluded.get(row, ()) for row in row_U.tolist()]
        greedy_U = np.array([sampling.greedy for sampling in samplings])[row_U]
        share_U = np.array(uniforms)[row_U]
        token_R[row_U], prob_R[row_U], mass_R[row_U] = _from_nucleus(
            probs_RV[row_U], top_p_R[row_U], share_U, greedy_U, tokens
        )
    # 3. Log-probabilities, before and after temperature and top-p.
    with np.errstate(divide="ignore", invalid="ignore"):
        sampled_R = np.log(prob_R) - np.log(mass_R)
        logprob_R = np.log(prob_R if raw_RV is probs_RV else raw_RV[row_R, token_R].astype(np.float64))
    drawn_3R = np.stack([np.where(prob_R > 0, token_R, -1), logprob_R, sampled_R])
    np.minimum(drawn_3R[1:], 0.0, out=drawn_3R[1:])
    return drawn_3R


def _from_nucleus(
    probs_UV: Floats, top_p_U: Floats, share_U: Floats, greedy_U: npt.NDArray[np.bool_], excluded: Sequence[TokenIds]
) -> tuple[npt.NDArray[np.integer], Floats, Floats]:
    """Token, its probability and the nucleus' mass, for each row: U."""
    vocab_size = probs_UV.shape[1]
    row_U = np.arange(len(probs_UV))
    # 1. The nucleus ends at the first rank whose cumulative probability reaches top-p.
    order_UV = np.argsort(-probs_UV, axis=1, kind="stable")
    cumulative_UV = np.take_along_axis(probs_UV, order_UV, 1).cumsum(1, dtype=np.float64)
    last_U = np.minimum((cumulative_UV < top_p_U[:, None]).sum(1), vocab_size - 1)
    mass_U = cumulative_UV[row_U, last_U]
    inside_UV = np.empty(probs_UV.shape, dtype=bool)
    np.put_along_axis(inside_UV, order_UV, np.arange(vocab_size) <= last_U[:, None], 1)
    weights_UV = np.where(inside_UV, probs_UV, 0)
    # 2. Excluded tokens lose their probability; the nucleus' mass stays as it was. Without a token left in it, the most
    #    probable other one is drawn.
    for row, tokens in enumerate(excluded):
        weights_UV[row, list(tokens)] = 0
        if tokens and not weights_UV[row].any():
            others_V = probs_UV[row].copy()
            others_V[list(tokens)] = 0
            weights_UV[row, others_V.argmax()] = others_V.max()
    # 3. The first id whose cumulative weight exceeds the share; greedy rows take the most probable.
    by_id_UV = weights_UV.cumsum(1, dtype=np.float64)
    target_U = share_U * by_id_UV[:, -1]
    token_U = np.minimum((by_id_UV <= target_U[:, None]).sum(1), vocab_size - 1)
    token_U = np.where(greedy_U, weights_UV.argmax(1), token_U)
    return token_U, weights_UV[row_U, token_U].astype(np.float64), mass_U
