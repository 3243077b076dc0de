"""Does the clever engine say what the plain one says, token for token?"""

from __future__ import annotations

import pytest

from flow_dpo.core.types import Sampling
from tests.contract.test_engine_contract import SAMPLINGS, _case, _one_thread, _requests, assert_same
from tests.support.tiny_models import KINDS

__all__ = ["_one_thread"]  # a fixture of this module too


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_the_local_engine_says_what_the_plain_one_says(kind: str, sampling: Sampling) -> None:
    """Batches, shared prefixes and kept keys against one forward a token: the same tokens for the same seeds."""
    plain, local = _case(f"plain_{kind}").build(), _case(kind).build()
    requests, seeds = _requests(40), range(40)
    assert_same(plain.sample(requests, sampling, seeds=seeds), local.sample(requests, sampling, seeds=seeds))
    first = {token: plain.submit(requests[0], sampling, seed=9, excluded=(token,)) for token in (4, 7)}
    said = dict(plain.poll() + plain.poll())
    for token, ticket in first.items():
        local.submit(requests[0], sampling, seed=9, excluded=(token,))
        [(_, other)] = local.poll()
        assert_same([said[ticket]], [other])
