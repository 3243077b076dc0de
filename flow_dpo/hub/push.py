"""Pushing to the hub: a run's adapters, merged models, traces and pairs, one commit per repository.

    push_to_hub("runs/gsm8k", "me/gsm8k-flow")                                 adapters, private
    push_to_hub("runs/gsm8k", "me/gsm8k-flow", what=("adapters", "pairs"))

Everything is read and checked before the first byte is sent. A failed request is repeated a few times with growing
pauses, and none waits without a limit. Invariant: the run is only read, and a repository gets all of a push or nothing:
a commit is made after its files have arrived. After an interruption the same call resumes, because the hub reports
which files it already has.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token, set_client_factory
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.errors import HTTPError as ClientError  # pyright: ignore[reportPrivateImportUsage]
from huggingface_hub.utils import _http

from flow_dpo.core.errors import ConfigError, StorageError
from flow_dpo.hub import contents
from flow_dpo.hub.contents import Part
from flow_dpo.hub.settings import PushSettings
from flow_dpo.runs.published import one_line

T = TypeVar("T")
log = logging.getLogger("flow_dpo")

PAUSES_S = (1.0, 4.0, 8.0)
"""Seconds to wait before each repetition of a request."""
SILENCE_S = 60.0
"""Seconds without an answer, or without a byte of one, after which a request has failed."""
_NETWORK = (ClientError, HfHubHTTPError, OSError, ValueError, RuntimeError)
"""What huggingface_hub raises if the hub, the network or an answer is at fault: its client's errors (httpx or httpx2,
depending on its version), its own, and hf_xet's RuntimeError."""


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """One repository that was pushed to."""

    kind: str
    repo_id: str
    repo_type: str
    url: str
    commit: str
    files: tuple[str, ...]


def push_to_hub(
    run: str | Path,
    repo_id: str,
    *,
    what: str | Sequence[str] = ("adapters",),
    private: bool = True,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    traces: str | Path | None = None,
    evaluations: Sequence[str | Path] = (),
    base_model: str | None = None,
) -> list[Pushed]:
    """Push a run to the hub and return the repositories that it went to.

    `run` is a run folder, or a folder of traces if only these are pushed. `what` names adapters, merged, traces and
    pairs. `token` defaults to the one stored by `hf auth login`, or to HF_TOKEN. Raises `ConfigError` or `DataError`
    before anything is sent, and `StorageError`, saying what has arrived, if the push did not complete.
    """
    settings = PushSettings(
        repo_id=repo_id,
        what=what if isinstance(what, str) else ",".join(what),
        public=not private,
        traces="" if traces is None else str(traces),
        evaluations=",".join(map(str, evaluations)),
        base_model=base_model or "",
        revision=revision or "",
        commit_message=commit_message or "",
    )
    return push(Path(run), settings, token=token)


def push(
    run: Path, settings: PushSettings, *, token: str | None = None, report: Callable[[str], None] = lambda _: None
) -> list[Pushed]:
    """`push_to_hub` with settings; `report` is called for every repository that is done."""
    if not settings.dry_run:
        refuse_offline()
        settings = replace(settings, repo_id=_with_owner(settings.repo_id, token))
    with tempfile.TemporaryDirectory(prefix="flow-dpo-push-") as folder:
        parts = gather(run, settings, Path(folder))
        if settings.dry_run:
            for part in parts:
                report(part.words)
                for name in part.files:
                    report(f"  {name}")
            return []
        return _send(parts, settings, token, report)


def gather(run: Path, settings: PushSettings, folder: Path) -> list[Part]:
    """Everything that will be sent; merged models are written into `folder`."""
    parts: list[Part] = []
    source = contents.read_source(run, settings) if {"adapters", "merged"} & {*settings.kinds} else None
    # Cheap checks first: merging loads the model.
    if source is not None and "adapters" in settings.kinds:
        parts.append(contents.adapters_part(source, settings))
    if "traces" in settings.kinds:
        parts.append(contents.traces_part(contents.traces_folder(run, settings), settings))
    if "pairs" in settings.kinds:
        parts.append(contents.pairs_part(run, settings))
    if source is not None and "merged" in settings.kinds:
        parts += contents.merged_parts(source, settings, folder)
    if source is not None and source.origin.base_id is None and source.config["model"]["model_name_or_path"] != "seed":
        log.warning(
            "the base model of this run is a local folder, published as %s, a name that others cannot load it by; give "
            "its hub id with --base_model",
            source.origin.base,
        )
    return parts


def refuse_offline() -> None:
    """Raise `ConfigError` if huggingface_hub is set not to use the network."""
    if constants.HF_HUB_OFFLINE:
        raise ConfigError(
            "expected a connection to the hub, found HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) set; unset it to push, "
            "or see what would be pushed with `flow-dpo push --dry_run`"
        )


def _secret(token: str | None) -> str:
    found = token or get_token()
    if not found:
        raise ConfigError("expected a hub token with write access, found none; run hf auth login, or set HF_TOKEN")
    return found


def _with_owner(repo_id: str, token: str | None) -> str:
    """The id, prefixed with the token's owner if it names none."""
    secret = _secret(token)
    if "/" in repo_id:
        return repo_id
    try:
        with _bounded_waiting():
            return f"{_again(HfApi(token=token).whoami)['name']}/{repo_id}"
    except _NETWORK as error:
        text = one_line(error).replace(secret, "***")
        raise StorageError(
            f"could not ask the hub who owns this token: {text}; name the owner: OWNER/{repo_id}"
        ) from None


def _send(
    parts: Sequence[Part], settings: PushSettings, token: str | None, report: Callable[[str], None]
) -> list[Pushed]:
    api, done, secret = HfApi(token=token), list[Pushed](), _secret(token)
    with _bounded_waiting():
        for part in parts:
            try:
                done.append(_send_one(api, part, settings))
            except ConfigError:
                raise
            except _NETWORK as error:
                text, advice = one_line(error), "run the same command again"
                if _status(error) in (401, 403):
                    advice = (
                        f"log in with a token that can write to {part.repo_id} (hf auth login, HF_TOKEN) and {advice}"
                    )
                raise StorageError(
                    f"could not push {part.kind} to {part.repo_id}: {text.replace(secret, '***')}; "
                    f"{_state(parts, done)} The run is untouched: {advice}; what the hub already has is skipped"
                ) from None  # the cause holds the request, which contains the token
            report(f"{part.words}, at {done[-1].url}")
    return done


def _send_one(api: HfApi, part: Part, settings: PushSettings) -> Pushed:
    """Create the repository if it does not exist, and send one commit with all files."""
    kind = part.repo_type
    url = _again(lambda: api.create_repo(part.repo_id, repo_type=kind, private=not settings.public, exist_ok=True))
    _refuse_public(part, settings, private=_again(lambda: api.repo_info(part.repo_id, repo_type=kind)).private)
    if branch := settings.revision:
        _again(lambda: api.create_branch(part.repo_id, branch=branch, repo_type=kind, exist_ok=True))
    operations = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=file if isinstance(file, bytes) else str(file))
        for name, file in part.files.items()
    ]
    where = {"repo_id": part.repo_id, "repo_type": part.repo_type, "revision": settings.revision or None}
    # huggingface_hub repeats uploads itself, but not the requests around them.
    api.preupload_lfs_files(additions=operations, free_memory=False, **where)
    message = settings.commit_message or f"{part.kind}, by flow-dpo"
    commit = _again(lambda: api.create_commit(operations=operations, commit_message=message, **where))
    return Pushed(
        kind=part.kind, repo_id=part.repo_id, repo_type=part.repo_type, url=str(url), commit=commit.oid,
        files=tuple(part.files),
    )  # fmt: skip


def _again(call: Callable[[], T]) -> T:
    """The result of a request, repeated after a pause if the hub failed or the connection was lost."""
    for pause in PAUSES_S:
        try:
            return call()
        except ClientError as error:
            status = _status(error)
            if status is not None and status < 500 and status not in (408, 429):
                raise
            log.warning(
                "the hub did not answer (%s); asking again in %g seconds", status or type(error).__name__, pause
            )
        time.sleep(pause)
    return call()


def _status(error: BaseException) -> int | None:
    """The status with which the hub answered a request; None if it did not answer."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _refuse_public(part: Part, settings: PushSettings, *, private: bool | None) -> None:
    """Refuse to push to a public repository without `public`: an existing repository keeps its visibility."""
    if private is False and not settings.public:
        raise ConfigError(
            f"expected {part.repo_id} to be private, found that everybody can read it; add --public if you mean that, "
            "or push to another repository"
        )
    if private and settings.public:
        log.warning("%s already exists and stays private; make it public in its settings on the hub", part.repo_id)


def _state(parts: Sequence[Part], done: Sequence[Pushed]) -> str:
    """What has arrived and what has not."""
    missing = ", ".join(part.kind for part in parts[len(done) :])
    arrived = ", ".join(f"{one.kind} ({one.repo_id})" for one in done)
    return f"{f'pushed: {arrived}' if arrived else 'nothing was pushed'}; not yet: {missing}."


@contextmanager
def _bounded_waiting() -> Iterator[None]:
    """A time limit for huggingface_hub's client, which has none: a silent hub would hold the command for ever."""
    made = _http._GLOBAL_CLIENT_FACTORY

    def client() -> Any:
        new = made()
        new.timeout = SILENCE_S
        return new

    set_client_factory(client)
    try:
        yield
    finally:
        set_client_factory(made)
