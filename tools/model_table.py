"""The table of model families in docs/models.md: what engine and learner do with a tiny model of each family.

    python -m tools.model_table                          every family, float32 and bfloat16; writes the table (minutes)
    python -m tools.model_table gemma2 diffllama         only prints the rows of these families

A family is a kind of causal language model that transformers can build (`tests.support.model_families`).
"""

from __future__ import annotations

import argparse
import collections
import copy
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError

from flow_dpo.core.engine import Engine
from flow_dpo.core.errors import ModelError
from flow_dpo.engines.factory import AdapterStore, open_engine
from flow_dpo.engines.local.engine import LocalEngine
from flow_dpo.engines.settings import LocalSettings
from flow_dpo.learner.learner import Learner
from flow_dpo.learner.policy import Policy
from flow_dpo.learner.settings import LearnerSettings, LoraSettings
from flow_dpo.models.facts import context_tokens
from flow_dpo.models.load import LoadedModel
from flow_dpo.models.own_forward import FAULTS
from tests.support.model_families import build, names

DOCS = Path(__file__).parent.parent / "docs" / "models.md"
BEGIN, END = "<!-- table: python -m tools.model_table -->", "<!-- end of table -->"
ROLES = ("answer", "stop")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(kw_only=True)
class Family:
    """The result for one family."""

    name: str
    model_class: str = ""
    engine: str = ""
    """"exact", "plain path" or "refused"; "" if no model was built."""
    learner: str = ""
    """"packed", "separate" or "refused"."""
    reach: float = 0.0
    """The share of the weights that the default targets adapt."""
    base: Any = None
    """A copy of the model as it was built, unchanged."""
    seen: str = ""
    """Why the family is not exact and packed, or why no model was built."""
    policy: Policy | None = None
    sampler: Engine | None = None
    student: Learner | None = None


def examine(name: str, dtype: torch.dtype = torch.float32) -> Family:
    """Build a tiny model of a family, and open engine and learner on it as a run does."""
    family = Family(name=name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # 1. The model.
        try:
            model = build(name, dtype=dtype)
            with torch.no_grad():
                model(input_ids=torch.arange(3, 23)[None], use_cache=False)
        except (*FAULTS, ImportError, StrictDataclassError) as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            family.seen = f"{type(error).__name__}: {error} ({Path(where.filename).name})"
            return family
        family.model_class, family.base = type(model).__name__, copy.deepcopy(model)
        # 2. Adapters, engine and learner.
        try:
            family.policy = Policy(model, ROLES, LoraSettings(lora_r=4), seed=1)
        except ModelError as error:
            family.engine = family.learner = "refused"
            family.seen = str(error)
            return family
        family.reach = family.policy.targets.share
        loaded = cast(LoadedModel, _Loaded(model, context_tokens(model.config) or 512))
        try:
            with open_engine(LocalSettings(), loaded, num_roles=len(ROLES)) as access:
                family.sampler = access.build(family.policy, cast(AdapterStore, None))
            family.engine = "exact" if isinstance(family.sampler, LocalEngine) else "plain path"
        except ModelError as error:
            family.engine, family.seen = "refused", str(error)
        try:
            family.student = Learner(family.policy, LearnerSettings(examples_per_update=0))
            family.student.check()
            family.learner = "packed" if family.student.way[0] else "separate"
        except ModelError as error:
            family.learner, family.seen = "refused", family.seen or str(error)
    said = [str(w.message) for w in caught if "is sampled by" in str(w.message) or "not shared" in str(w.message)]
    family.seen = family.seen or (said or [""])[0]
    return family


@dataclass(frozen=True)
class _Loaded:
    """The part of a `LoadedModel` that engines need: without a tokenizer, and without end tokens."""

    model: transformers.PreTrainedModel
    context_tokens: int
    end_ids: frozenset[int] = frozenset()
    num_tokens: int | None = None


def _row(full: Family, half: Family) -> str:
    def both(field: str) -> str:
        first, second = getattr(full, field), getattr(half, field)
        return first if first == second else f"{first} (bfloat16: {second or 'does not run'})"

    reach = f"{100 * full.reach:.0f} %" if full.reach else ""
    return f"| {full.name} | {full.model_class} | {both('engine')} | {both('learner')} | {reach} |"


def _table(families: Sequence[tuple[Family, Family]]) -> str:
    built = [pair for pair in families if pair[0].engine]
    lines = [
        f"{len(families)} kinds, {len(built)} of them built tiny; transformers {transformers.__version__}.",
        "",
        "| family | class | engine | learner | adapters reach |",
        "| --- | --- | --- | --- | --- |",
        *(_row(full, half) for full, half in built),
        "",
        "What was seen where a family is refused:",
        "",
        *(f"- {each.name}: {_short(each.seen)}" for each, _ in built if "refused" in (each.engine, each.learner)),
        "",
        "Not built tiny, and so not tried here:",
        "",
        *(f"- {each.name}: {_short(each.seen)}" for each, _ in families if not each.engine),
    ]
    return "\n".join(lines)


def _short(text: str) -> str:
    return " ".join(text.split())[:300]


def main(arguments: Sequence[str]) -> int:
    """Examine families; write the table if all were examined."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY")
    wanted = parser.parse_args(arguments).families or names()
    transformers.logging.set_verbosity_error()
    found: list[tuple[Family, Family]] = []
    for name in wanted:
        pair = cast(Any, tuple(_examined(name, dtype) for dtype in _DTYPES.values()))
        found.append(pair)
        print(_row(*pair), _short(pair[0].seen), flush=True)
    if list(wanted) == list(names()):
        before, _, rest = DOCS.read_text(encoding="utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        DOCS.write_text(f"{before}{BEGIN}\n\n{_table(found)}\n\n{END}{after}", encoding="utf-8")
    for field in ("engine", "learner"):
        for index, dtype in enumerate(_DTYPES):
            print(dtype, field, dict(collections.Counter(getattr(pair[index], field) for pair in found)))
    return 0


def _examined(name: str, dtype: torch.dtype) -> Family:
    """The result for a family without its models, of which two hundred would stay in memory."""
    family = examine(name, dtype)
    if family.sampler is not None:
        with suppress(AttributeError), closing(cast(Any, family.sampler)):
            pass
    family.base = family.policy = family.sampler = family.student = None
    return family


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
