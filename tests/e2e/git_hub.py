"""A Hub with git: `git http-backend` on bare repositories, and an origin for everything else."""

import http.client
import subprocess
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.conftest import clean_environment, need_program

GIT_PATHS = ("/info/refs", "/git-upload-pack", "/git-receive-pack")


@dataclass
class Asked:
    """A request for git; header names in lower case, the body without chunk framing."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


@dataclass
class GitHub:
    """The Hub.

    folder: has a bare repository for each path, such as datasets/o/n.
    private: path -> the token that may read it; others are 401.
    moved: path -> where the Hub redirects to.
    """

    folder: Path
    origin_url: str
    url: str = ""
    private: dict[str, str] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: GitHub

    def do_GET(self) -> None:
        body = self._read_body()
        path, _, query = self.path.partition("?")
        if not path.endswith(GIT_PATHS):
            self._pass_on(body)
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.asked.append(Asked(self.command, self.path, headers, body))
        (end,) = (each for each in GIT_PATHS if path.endswith(each))
        repo = path.removesuffix(end).removesuffix(".git").strip("/")
        if repo in self.hub.moved:
            target = f"/{self.hub.moved[repo]}{end}?{query}"
            self._answer(307, [("Location", target)], b"")
        elif self._may_read(repo):
            self._run_git(f"/{repo}{end}", query, body)
        else:
            text = [("Content-Type", "text/plain"), ("WWW-Authenticate", 'Basic realm="hub"')]
            self._answer(401, text, b"Invalid username or password.")

    do_POST = do_HEAD = do_GET

    def _may_read(self, repo: str) -> bool:
        token = self.hub.private.get(repo)
        return token is None or self.headers.get("authorization") == f"Bearer {token}"

    def _run_git(self, path: str, query: str, body: bytes) -> None:
        done = subprocess.run(
            [need_program("git"), "http-backend"],
            env=clean_environment(
                GIT_PROJECT_ROOT=str(self.hub.folder),
                GIT_HTTP_EXPORT_ALL="1",
                REMOTE_ADDR="127.0.0.1",
                REQUEST_METHOD=self.command,
                PATH_INFO=path,
                QUERY_STRING=query,
                CONTENT_TYPE=self.headers.get("content-type", ""),
                HTTP_CONTENT_ENCODING=self.headers.get("content-encoding", ""),
                GIT_PROTOCOL=self.headers.get("git-protocol", ""),
            ),
            input=body,
            capture_output=True,
            check=False,
        )
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        pairs = [line.partition(": ") for line in head.decode().split("\r\n") if line]
        fields = [(name, value) for name, _, value in pairs]
        status = int(dict(fields).get("Status", "200")[:3])
        self._answer(status, [each for each in fields if each[0] != "Status"], content)

    def _pass_on(self, body: bytes) -> None:
        parts = urllib.parse.urlsplit(self.hub.origin_url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
        fields = {
            name: value
            for name, value in self.headers.items()
            if name.lower() not in ("connection", "content-length", "transfer-encoding")
        }
        connection.request(self.command, self.path, body or None, fields)
        answer = connection.getresponse()
        content = answer.read()
        self._answer(answer.status, answer.getheaders(), content)
        connection.close()

    def _read_body(self) -> bytes:
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", "0")))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size + 2)[:-2]
        self.rfile.readline()
        return body

    def _answer(self, status: int, fields: list[tuple[str, str]], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in fields:
            if self.command == "HEAD" or name.lower() != "content-length":
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Be silent."""


@contextmanager
def serving_git(folder: Path, origin_url: str) -> Iterator[GitHub]:
    """Run the Hub."""
    hub = GitHub(folder, origin_url)
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
