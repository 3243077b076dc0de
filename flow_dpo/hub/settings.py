"""Settings of a push: which parts of a run go to which repository, and who can see them.

PushSettings(repo_id="me/gsm8k-flow", what=("adapters", "pairs"))      # private, unless `public`
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from flow_dpo.core.errors import ConfigError

What = Literal["adapters", "merged", "traces", "pairs"]
KINDS: tuple[What, ...] = get_args(What)
REPO_ID = re.compile(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*", re.ASCII)
_SUFFIXES: Mapping[str, str] = {"traces": "-traces", "pairs": "-pairs"}


@dataclass(frozen=True, kw_only=True)
class PushSettings:
    """What is pushed, and where."""

    repo_id: str = ""
    """"me/name", or "name" for a repository of the token's owner. It gets the adapters. The merged model of each role
    goes to "me/name-ROLE", traces and pairs to the data sets "me/name-traces" and "me/name-pairs"."""
    what: str = "adapters"
    """One or more of adapters, merged, traces, pairs, separated by commas."""
    public: bool = False
    """Let everybody read what is pushed; otherwise repositories are private, and an existing public one is refused."""
    traces: str = ""
    """The folder of traces to push (`flow-dpo generate`), if the source is a run."""
    evaluations: str = ""
    """Folders with evaluations of this run (`flow-dpo evaluate --run`), separated by commas. Their results go on the
    card."""
    base_model: str = ""
    """The hub id of the base model, if the run names it by a local folder."""
    revision: str = ""
    """A branch, created if it does not exist; the main branch if not given."""
    commit_message: str = ""
    dry_run: bool = False
    """Show what would be pushed, without using the network."""

    def __post_init__(self) -> None:
        if not REPO_ID.fullmatch(self.repo_id) or "--" in self.repo_id or ".." in self.repo_id:
            raise ConfigError(
                f'expected a repository as "name-of-owner/name" in --repo_id, found {self.repo_id!r:.100}'
            )
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            raise ConfigError(
                f"expected one or more of {', '.join(KINDS)} in --what, found {(unknown or [self.what])[0]!r:.80}"
            )

    @property
    def kinds(self) -> tuple[str, ...]:
        """What is pushed, each kind once, in the order of `KINDS`."""
        named = [name.strip() for name in self.what.split(",") if name.strip()]
        return tuple(sorted(dict.fromkeys(named), key=lambda name: KINDS.index(name) if name in KINDS else -1))

    def repository(self, kind: str, role: str = "") -> str:
        """The id of the repository for one kind."""
        suffix = f"-{role}" if kind == "merged" else _SUFFIXES.get(kind, "")
        return self.repo_id if self.repo_id.endswith(suffix) and kind != "merged" else self.repo_id + suffix
