"""A hub on the loopback interface: the few answers that `huggingface_hub` needs, from memory."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub import constants


def files_of(folder: Path, under: str = "") -> dict[str, bytes]:
    """Return the files of a folder as the hub holds them, by path."""
    return {
        f"{under}{file.relative_to(folder).as_posix()}": file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


class FakeHub:
    """Repositories by name, each with the files of its revisions; what it was asked for."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.closed: dict[str, int] = {}
        """Repositories that answer with this code; 403: on files only."""
        self.breaks_off: set[str] = set()
        """Files whose body ends early."""
        self.asked: list[str] = []
        """Method and path of every request."""
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def publish(self, repo: str, files: dict[str, bytes], revision: str = "main") -> None:
        self.repos.setdefault(repo, {})[revision] = files

    def sent(self) -> list[str]:
        """The files that were fetched, whole or in part, in any order."""
        fetched = [line for line in self.asked if line.startswith("GET") and "/resolve/" in line]
        return sorted({line.split("/resolve/")[1].partition("/")[2] for line in fetched})

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def commit(self, repo: str, revision: str) -> str | None:
        """The commit of a revision, which may be one itself."""
        for name, files in self.repos[repo].items():
            text = json.dumps(
                {path: hashlib.sha1(data).hexdigest() for path, data in files.items()}
            )
            commit = hashlib.sha1(f"{repo}{text}".encode()).hexdigest()
            if revision in (name, commit):
                return commit
        return None

    def files(self, repo: str, commit: str) -> dict[str, bytes]:
        return next(f for name, f in self.repos[repo].items() if self.commit(repo, name) == commit)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                """Nothing on stderr."""

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                hub.asked.append(f"{self.command} {self.path}")
                url = urlsplit(self.path)
                parts = [unquote(part) for part in url.path.strip("/").split("/")]
                in_api = parts[:2] == ["api", "models"]
                repo, rest = (
                    "/".join(parts[2:4] if in_api else parts[:2]),
                    parts[4 if in_api else 2 :],
                )
                if repo not in hub.repos:
                    return self.refuse(401 if in_api else 404, "RepoNotFound")
                verb, revision = (rest[0], rest[1]) if len(rest) > 1 else ("revision", "main")
                commit = hub.commit(repo, revision)
                if commit is None:
                    return self.refuse(404, "RevisionNotFound")
                closed = hub.closed.get(repo)
                if closed is not None and (verb == "resolve" or closed != 403):
                    return self.refuse(closed, "GatedRepo" if closed < 500 else "")
                files = hub.files(repo, commit)
                if verb == "revision":
                    blobs = "blobs" in parse_qs(url.query)
                    siblings = [
                        {"rfilename": name, **({"size": len(data)} if blobs else {})}
                        for name, data in files.items()
                    ]
                    return self.answer({"id": repo, "sha": commit, "siblings": siblings})
                if verb == "tree":
                    return self.answer(
                        [
                            {"type": "file", "path": name, "size": len(data), "oid": etag(data)}
                            for name, data in files.items()
                        ]
                    )
                name = "/".join(rest[2:])
                if name not in files:
                    return self.refuse(404, "EntryNotFound", commit)
                return self.file(name, files[name], commit)

            def answer(self, held: object) -> None:
                self.body(200, json.dumps(held).encode(), {"Content-Type": "application/json"})

            def refuse(self, code: int, reason: str, commit: str = "") -> None:
                self.body(code, b"{}", {"X-Error-Code": reason, "X-Repo-Commit": commit})

            def file(self, name: str, data: bytes, commit: str) -> None:
                headers = {"X-Repo-Commit": commit, "ETag": f'"{etag(data)}"'}
                asked, code = self.headers.get("Range"), 200
                if asked is not None:
                    first, _, last = asked.removeprefix("bytes=").partition("-")
                    whole, end = len(data), int(last) + 1 if last else len(data)
                    data, code = data[int(first) : end], 206
                    headers["Content-Range"] = f"bytes {first}-{int(first) + len(data) - 1}/{whole}"
                self.body(code, data, headers, short=name in hub.breaks_off)

            def body(
                self, code: int, data: bytes, headers: dict[str, str], *, short: bool = False
            ) -> None:
                self.send_response(code)
                for key, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(data[: len(data) // 2] if short else data)

        return Handler


def etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@contextlib.contextmanager
def reachable(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub that `huggingface_hub` in this process talks to, with an empty cache."""
    hub = FakeHub()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    try:
        yield hub
    finally:
        hub.stop()
