"""A push to the hub: a run's adapters, merged models, traces and pairs, each repository in one commit.

    push_to_hub("runs/gsm8k", "me/gsm8k-flow")                                 adapters, private
    push_to_hub("runs/gsm8k", "me/gsm8k-flow", what=("adapters", "pairs"))

Everything is read and checked before the first byte leaves. Requests that fail are made again a few times, with growing
pauses; none waits without a limit. Invariant: the run is only read, and a repository has either
all of a push or nothing of it, for a commit is sent after the files in it have arrived; the same call resumes after an
interruption, for the hub says which files it has.
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
"""Seconds before a request is made again."""
SILENCE_S = 60.0
"""Seconds without an answer, or without a byte, after which a request counts as failed."""
_NETWORK = (ClientError, HfHubHTTPError, OSError, ValueError, RuntimeError)
"""What huggingface_hub raises where the hub, the network between or an answer is at fault: errors of its client (httpx,
or httpx2, by its version), its own, and hf_xet's RuntimeError."""


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
    """Push a run to the hub, and return the repositories that it went to.

    `run` is a run folder, or a folder of traces where these alone are pushed; `what` names adapters, merged, traces and
    pairs. `token` is by default the one that `hf auth login` stored, or HF_TOKEN. Raises `ConfigError` or `DataError`
    before anything is sent, and `StorageError` where it did not arrive, with what did.
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
    """The same by settings; `report` is called with every repository that is done."""
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
    """Everything that is to be sent; merged models are written into `folder`."""
    parts: list[Part] = []
    source = contents.read_source(run, settings) if {"adapters", "merged"} & {*settings.kinds} else None
    # What is cheap to refuse comes first: merging loads the model.
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
            "the base model of this run is a folder of this machine: it is named %s there, and who loads the adapters "
            "must know it; name its hub id with --base_model",
            source.origin.base,
        )
    return parts


def refuse_offline() -> None:
    """Raise `ConfigError` where huggingface_hub may not use the network."""
    if constants.HF_HUB_OFFLINE:
        raise ConfigError(
            "expected a connection to the hub, found HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) set; unset it to push, "
            "or see what would be pushed by `flow-dpo push --dry_run`"
        )


def _secret(token: str | None) -> str:
    found = token or get_token()
    if not found:
        raise ConfigError("expected a token of the hub that may write, found none: hf auth login, or set HF_TOKEN")
    return found


def _with_owner(repo_id: str, token: str | None) -> str:
    """The id with the owner of the token in front, where it names none."""
    secret = _secret(token)
    if "/" in repo_id:
        return repo_id
    try:
        with _bounded_waiting():
            return f"{_again(HfApi(token=token).whoami)['name']}/{repo_id}"
    except _NETWORK as error:
        text = one_line(error).replace(secret, "***")
        raise StorageError(
            f"could not ask the hub whose token this is: {text}; name the owner: OWNER/{repo_id}"
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
                text, advice = one_line(error), "give the same command again"
                if _status(error) in (401, 403):
                    advice = (
                        f"log in with a token that may write to {part.repo_id} (hf auth login, HF_TOKEN) and {advice}"
                    )
                raise StorageError(
                    f"could not push {part.kind} to {part.repo_id}: {text.replace(secret, '***')}; "
                    f"{_state(parts, done)} The run is untouched: {advice}, what the hub has already is skipped"
                ) from None  # the cause holds the request, and with it the token
            report(f"{part.words}, at {done[-1].url}")
    return done


def _send_one(api: HfApi, part: Part, settings: PushSettings) -> Pushed:
    """Make the repository where there is none, and send one commit with all files."""
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
    # Uploads are repeated by huggingface_hub, the requests around them are not.
    api.preupload_lfs_files(additions=operations, free_memory=False, **where)
    message = settings.commit_message or f"{part.kind}, by flow-dpo"
    commit = _again(lambda: api.create_commit(operations=operations, commit_message=message, **where))
    return Pushed(
        kind=part.kind, repo_id=part.repo_id, repo_type=part.repo_type, url=str(url), commit=commit.oid,
        files=tuple(part.files),
    )  # fmt: skip


def _again(call: Callable[[], T]) -> T:
    """The result of a request, asked for again after a pause where the hub was out of order or the connection lost."""
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
    """What the hub answered a request with; None where it did not answer."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _refuse_public(part: Part, settings: PushSettings, *, private: bool | None) -> None:
    """A repository that is there already keeps its visibility, whatever was asked for."""
    if private is False and not settings.public:
        raise ConfigError(
            f"expected {part.repo_id} to be private, found that everybody can read it; add --public where that is "
            "meant, or push to another repository"
        )
    if private and settings.public:
        log.warning("%s is private already and stays so; its settings on the hub make it public", part.repo_id)


def _state(parts: Sequence[Part], done: Sequence[Pushed]) -> str:
    """What has arrived and what has not."""
    missing = ", ".join(part.kind for part in parts[len(done) :])
    arrived = ", ".join(f"{one.kind} ({one.repo_id})" for one in done)
    return f"{f'pushed: {arrived}' if arrived else 'nothing was pushed'}; not yet: {missing}."


@contextmanager
def _bounded_waiting() -> Iterator[None]:
    """huggingface_hub's client has no limit of its own: a hub that falls silent would hold the command for ever."""
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
