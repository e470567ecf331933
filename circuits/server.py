"""A folder's circuits as pages, on the loopback address only."""

from functools import partial
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from graphs.files import read_file
from graphs.names import readable
from graphs.view.page import page

SHOWN = (".circuit", ".html", ".json")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def server_of(folder: Path, port: int) -> ThreadingHTTPServer:
    """Return a server of this folder, not yet running; port 0 takes any that is free.

    Raises ValueError where the folder is none or the port is taken.
    """
    if not folder.is_dir():
        raise ValueError(f"serve: {str(folder)!r} is no folder. Give one that holds circuits.")
    try:
        handler = partial(_Handler, folder=folder.resolve())
        return ThreadingHTTPServer(("127.0.0.1", port), handler)
    except (OSError, OverflowError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise ValueError(
            f"serve: port {port} cannot be had ({reason}). Give another: --port 0 takes any that "
            "is free."
        ) from None


class _Handler(BaseHTTPRequestHandler):
    """Answers GET for the list, and for files of the folder that are circuits or pages."""

    def __init__(self, *given: Any, folder: Path) -> None:
        self.folder = folder
        super().__init__(*given)

    def do_GET(self) -> None:
        host = self.headers.get("Host", "").rsplit(":", 1)[0]
        if host not in ("127.0.0.1", "localhost"):  # a page elsewhere that calls itself by our name
            self._answer(403, "Ask for 127.0.0.1.")
            return
        name = unquote(urlsplit(self.path).path).lstrip("/")
        if not name:
            self._answer(200, self._list())
            return
        path = self._file(name)
        if path is None:
            self._answer(404, f"No circuit or page {escape(readable(name))} here.")
            return
        try:
            own = path.suffix.lower() == ".html"
            text = path.read_text(encoding="utf-8") if own else page(read_file(path))
        except (ValueError, OSError) as problem:
            self._answer(500, escape(str(problem)))
            return
        self._send(200, text, None)

    def _file(self, name: str) -> Path | None:
        """The file of this name, where it lies in the folder and can be shown."""
        try:
            path = (self.folder / name).resolve()
            inside = path.is_relative_to(self.folder) and path.is_file()
        except (OSError, ValueError):  # a name no file can have
            return None
        return path if inside and path.suffix.lower() in SHOWN else None

    def _list(self) -> str:
        names = sorted(
            path.relative_to(self.folder).as_posix()
            for path in self.folder.rglob("*")
            if path.suffix.lower() in SHOWN and path.is_file()
        )
        items = "".join(
            f'<li><a href="/{escape(quote(name))}">{escape(readable(name))}</a></li>'
            for name in names
            if self._file(name) is not None
        )
        return f"<h1>Circuits</h1><ul>{items or '<li>none here</li>'}</ul>"

    def _answer(self, code: int, body: str) -> None:
        style = "body{font:15px/1.6 sans-serif;margin:2em;color-scheme:light dark}"
        html = f"<!doctype html><meta charset=utf-8><title>circuits</title><style>{style}</style>"
        self._send(code, html + body, _POLICY)

    def _send(self, code: int, text: str, policy: str | None) -> None:
        data = text.encode("utf-8", "replace")
        self.send_response(code)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        if policy is not None:
            self.send_header("Content-Security-Policy", policy)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Requests are nobody's business."""
