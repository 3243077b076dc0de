"""A stand-in for the hub on 127.0.0.1: takes pushes as huggingface_hub makes them, and gives them back.

    with HubServer() as hub, hub.used(monkeypatch):
        push_to_hub(run, "me/flow")
    hub.files("me/flow")["config.yaml"]      # the bytes that arrived

It keeps repositories by commit, takes LFS objects once, and fails as it is told to: `hub.fail("PUT", "/lfs/", times=1)`
answers 500, `how="drop"` closes the connection in the middle, `how="silent"` never answers.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

TOKEN = "hf_standinsecret"


@dataclass
class Repository:
    """A repository: its commits, each with all files."""

    private: bool
    commits: list[dict[str, bytes]] = field(default_factory=list)
    refs: dict[str, int] = field(default_factory=lambda: {"main": 0})

    def sha(self, number: int) -> str:
        return hashlib.sha1(f"{id(self)}/{number}".encode()).hexdigest()

    def at(self, revision: str) -> int | None:
        known = {self.sha(number): number for number in range(len(self.commits))}
        return self.refs.get(revision, known.get(revision))


@dataclass
class Fault:
    method: str
    path: str
    times: int
    how: str
    status: int = 500


class HubServer:
    """The server, its repositories by (type, id), and every call that was made."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.calls: list[str] = []
        self.faults: list[Fault] = []
        self.over = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self._http.shutdown()
        self._http.server_close()

    def files(self, repo_id: str, kind: str = "model", revision: str = "main") -> dict[str, bytes]:
        """What a repository holds."""
        repository = self.repositories[(kind, repo_id)]
        return repository.commits[repository.at(revision) or 0]

    def make(self, repo_id: str, files: dict[str, bytes], *, kind: str = "model", private: bool = True) -> None:
        """A repository that was there before."""
        self.repositories[(kind, repo_id)] = Repository(private=private, commits=[files])

    def fail(self, method: str, path: str, *, times: int = 1, how: str = "status", status: int = 500) -> None:
        """Let the next calls whose path contains a text go wrong."""
        self.faults.append(Fault(method=method, path=path, times=times, how=how, status=status))

    @contextmanager
    def used(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[None]:
        """Let huggingface_hub talk to this server alone, without pauses between its attempts."""
        from huggingface_hub import close_session, constants, hf_api
        from huggingface_hub.utils import _http

        from flow_dpo.runs import published

        with monkeypatch.context() as patch:
            for name, value in self.environment(cache).items():
                patch.setenv(name, value)
            for name, value in {
                "ENDPOINT": self.url, "HF_HUB_DISABLE_XET": True, "HF_HUB_OFFLINE": False, "HF_HUB_CACHE": str(cache),
                "HF_HUB_DISABLE_TELEMETRY": True,
                "HUGGINGFACE_CO_URL_TEMPLATE": self.url + "/{repo_id}/resolve/{revision}/{filename}",
            }.items():  # fmt: skip
                patch.setattr(constants, name, value)
            patch.setattr(hf_api.api, "endpoint", self.url)  # behind huggingface_hub.file_exists and others
            patch.setattr(_http.time, "sleep", lambda _: None)  # the module's own: flow_dpo.hub.push pauses by it, too
            published._downloaded.cache_clear()
            close_session()
            yield
            published._downloaded.cache_clear()
            close_session()

    def environment(self, cache: Path) -> dict[str, str]:
        """The same for a process that is started."""
        return {
            "HF_ENDPOINT": self.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "", "TRANSFORMERS_OFFLINE": "",
        }  # fmt: skip


_REPO = r"(?P<id>[\w.-]+/[\w.-]+)"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *_: Any) -> None:
        pass

    # ---- one call ----------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        self.hub.calls.append(f"{self.command} {self.path}")
        fault = next((one for one in self.hub.faults if self._meets(one)), None)
        if fault is not None:
            fault.times -= 1
            if self._goes_wrong(fault):
                return
        body = self._body()
        path = self.path.partition("?")[0]
        for pattern, answer in self._ROUTES:
            if match := re.fullmatch(pattern, f"{self.command} {path}"):
                answer(self, body, **match.groupdict())
                return
        self._say({"error": "no such route"}, 404)

    do_GET = do_HEAD = do_PUT = do_POST = _serve

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length") or 0))
        pieces: list[bytes] = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _meets(self, fault: Fault) -> bool:
        return fault.times > 0 and fault.method == self.command and fault.path in self.path

    def _goes_wrong(self, fault: Fault) -> bool:
        self.close_connection = True
        if fault.how == "drop":
            self.rfile.read(int(self.headers.get("content-length") or 0) // 2)
        elif fault.how == "silent":
            self.hub.over.wait(60)
        else:
            self._body()
            # A careless proxy repeats what it was sent.
            self._say({"error": f"no room, {self.headers.get('authorization')}"}, fault.status)
        return True

    def _say(
        self, what: Any, status: int = 200, headers: dict[str, str] | None = None, data: bytes | None = None
    ) -> None:
        data = json.dumps(what).encode() if data is None else data
        self.send_response(status)
        for name, value in {"content-type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _found(self, kind: str | None, id: str) -> Repository | None:
        found = self.hub.repositories.get(((kind or "models").removesuffix("s"), id))
        if found is None or (found.private and self.headers.get("authorization") != f"Bearer {TOKEN}"):
            self._say({"error": "not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            return None
        return found

    # ---- writing -----------------------------------------------------------------------------------------------

    def _create(self, body: bytes) -> None:
        asked = json.loads(body)
        if self.headers.get("authorization") != f"Bearer {TOKEN}":
            self._say({"error": "no token"}, 401)
            return
        kind, id = asked.get("type") or "model", f"{asked['organization']}/{asked['name']}"
        where = {"url": f"{self.hub.url}/{'datasets/' if kind == 'dataset' else ''}{id}", "id": id}
        if (kind, id) in self.hub.repositories:
            self._say(where, 409)
            return
        private = asked.get("private") or asked.get("visibility") == "private"
        self.hub.repositories[(kind, id)] = Repository(private=bool(private), commits=[{}])
        self._say(where)

    def _preupload(self, body: bytes, kind: str, id: str, revision: str) -> None:
        if (repository := self._found(kind, id)) is None:
            return
        held = repository.commits[repository.at(revision) or 0]
        self._say(
            {
                "files": [
                    {
                        "path": file["path"], "shouldIgnore": False, "oid": _etag(file["path"], held.get(file["path"])),
                        "uploadMode": "lfs" if _is_lfs(file["path"]) else "regular",
                    }
                    for file in json.loads(body)["files"]
                ]
            }
        )  # fmt: skip

    def _batch(self, body: bytes, id: str, **_: str) -> None:
        objects = [
            {"oid": one["oid"], "size": one["size"]}
            | (
                {}
                if one["oid"] in self.hub.blobs
                else {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}}
            )
            for one in json.loads(body)["objects"]
        ]
        self._say({"transfer": "basic", "objects": objects})

    def _put(self, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.blobs[oid] = body
        self._say({})

    def _commit(self, body: bytes, kind: str, id: str, revision: str) -> None:
        if (repository := self._found(kind, id)) is None:
            return
        files = dict(repository.commits[repository.at(revision) or 0])
        for line in body.decode().splitlines():
            row = json.loads(line)
            if row["key"] == "file":
                files[row["value"]["path"]] = base64.b64decode(row["value"]["content"])
            elif row["key"] == "lfsFile":
                files[row["value"]["path"]] = self.hub.blobs[row["value"]["oid"]]
        repository.commits.append(files)
        repository.refs[revision] = len(repository.commits) - 1
        sha = repository.sha(len(repository.commits) - 1)
        self._say({"commitUrl": f"{self.hub.url}/{id}/commit/{sha}", "commitOid": sha})

    def _branch(self, body: bytes, kind: str, id: str, revision: str) -> None:
        if (repository := self._found(kind, id)) is not None:
            repository.refs.setdefault(revision, repository.refs["main"])
            self._say({})

    # ---- reading -----------------------------------------------------------------------------------------------

    def _info(self, body: bytes, kind: str, id: str, revision: str = "main") -> None:
        if (repository := self._found(kind, id)) is None:
            return
        if (number := repository.at(revision)) is None:
            self._say({"error": "no such revision"}, 404, {"X-Error-Code": "RevisionNotFound"})
            return
        files = [{"rfilename": name} for name in repository.commits[number]]
        self._say({"id": id, "sha": repository.sha(number), "private": repository.private, "siblings": files})

    def _tree(self, body: bytes, kind: str, id: str, revision: str) -> None:
        if (repository := self._found(kind, id)) is None:
            return
        files = repository.commits[repository.at(revision) or 0]
        self._say([_entry(name, data) for name, data in files.items()])

    def _resolve(self, body: bytes, id: str, revision: str, path: str, kind: str | None = None) -> None:
        if (repository := self._found(kind, id)) is None:
            return
        number = repository.at(revision)
        files = {} if number is None else repository.commits[number]
        if path not in files or number is None:
            self._say(
                {"error": "no such file"}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": repository.sha(0)}
            )
            return
        etag = f'"{_etag(path, files[path])}"'
        self._say(None, 200, {"ETag": etag, "X-Repo-Commit": repository.sha(number)}, files[path])

    _ROUTES = (
        ("POST /api/repos/create", _create),
        ("GET /api/whoami-v2", lambda self, body: self._say({"name": "me", "type": "user", "orgs": []})),
        ("POST /api/validate-yaml", lambda self, body: self._say({"errors": [], "warnings": []})),
        (rf"POST /api/(?P<kind>\w+)/{_REPO}/preupload/(?P<revision>[^/]+)", _preupload),
        (rf"POST /(?P<kind>datasets/)?{_REPO}\.git/info/lfs/objects/batch", _batch),
        (r"PUT /lfs/(?P<oid>\w+)", _put),
        (rf"POST /api/(?P<kind>\w+)/{_REPO}/commit/(?P<revision>[^/]+)", _commit),
        (rf"POST /api/(?P<kind>\w+)/{_REPO}/branch/(?P<revision>[^/]+)", _branch),
        (rf"GET /api/(?P<kind>\w+)/{_REPO}", _info),
        (rf"GET /api/(?P<kind>\w+)/{_REPO}/revision/(?P<revision>[^/]+)", _info),
        (rf"GET /api/(?P<kind>\w+)/{_REPO}/tree/(?P<revision>[^/]+)", _tree),
        (rf"(?:GET|HEAD) /(?:(?P<kind>datasets)/)?{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _resolve),
    )


def _is_lfs(path: str) -> bool:
    return path.endswith((".safetensors", ".parquet"))


def _oid(data: bytes | None) -> str | None:
    """As git names the content."""
    return None if data is None else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _etag(path: str, data: bytes | None) -> str | None:
    return hashlib.sha256(data).hexdigest() if data is not None and _is_lfs(path) else _oid(data)


def _entry(name: str, data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": _oid(data)}
    if _is_lfs(name):
        found["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return found
