"""Are the public names exactly those that can be imported?"""

from __future__ import annotations

import flow_dpo


def test_every_public_name_is_there_and_has_a_docstring() -> None:
    assert set(flow_dpo.__all__) == set(flow_dpo._HOMES)
    for name in flow_dpo.__all__:
        value = getattr(flow_dpo, name)
        assert not callable(value) or value.__doc__, f"{name} has no docstring"
