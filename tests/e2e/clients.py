"""The plain HTTP clients that people download with, as command lines."""

import http.client
import subprocess
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import Process, need_program
from tests.e2e.conftest import REPO, TOKEN, Site, environment_without_home

TIMEOUT = 60.0
CUT = (18, 56)  # curl: the body is incomplete; the connection was reset


def curl(url: str, target: Path, *options: str) -> list[str]:
    """curl, failing on error statuses."""
    return [
        *(need_program("curl"), "-q", "-sS", "-f", "--noproxy", "*"),
        *("-H", f"Authorization: Bearer {TOKEN}", "-o", str(target), *options, url),
    ]


def wget(url: str, target: Path, *options: str) -> list[str]:
    """wget, with one try: it would take a cut connection for a reason to go on."""
    return [
        *(need_program("wget"), "--no-config", "-nv", "--no-proxy", "--tries=1"),
        *(f"--header=Authorization: Bearer {TOKEN}", "-O", str(target), *options, url),
    ]


def aria2(url: str, target: Path, *options: str) -> list[str]:
    """aria2, in one piece."""
    return [
        *(need_program("aria2c"), "--no-conf", "-q", "--max-tries=1", "--no-netrc"),
        *("--allow-overwrite=true", f"--header=Authorization: Bearer {TOKEN}"),
        *("-d", str(target.parent), "-o", target.name, *options, url),
    ]


@dataclass(frozen=True)
class Reply:
    """An answer: header names in lower case, the body without chunk framing but coded as it
    came.
    """

    status: int
    headers: dict[str, str]
    body: bytes


class Connection:
    """A kept connection to a server, with a token in every request, or with none."""

    def __init__(self, url: str, token: str | None = TOKEN, *, source: str = "") -> None:
        self._token = token
        parts = urllib.parse.urlsplit(url)
        assert parts.hostname is not None
        self._inner = http.client.HTTPConnection(
            parts.hostname,
            parts.port,
            timeout=TIMEOUT,
            source_address=(source, 0) if source else None,
        )

    def ask(
        self,
        path: str,
        fields: Iterable[tuple[str, str]] = (),
        method: str = "GET",
        *,
        body: bytes | None = None,
        token: str | None = "",
    ) -> Reply:
        """Send a request and read its answer; of HEAD the fields only.

        Args:
            token: another one than the connection's; None: none.
        """
        fields = list(fields)
        has_host = any(name.lower() == "host" for name, _ in fields)
        self._inner.putrequest(method, path, skip_host=has_host, skip_accept_encoding=True)
        token = self._token if token == "" else token
        if token is not None:
            fields = (("Authorization", f"Bearer {token}"), *fields)
        if body is not None:
            fields = (("Content-Length", str(len(body))), *fields)
        for name, value in fields:
            self._inner.putheader(name, value)
        self._inner.endheaders(body)
        answer = self._inner.getresponse()
        pairs = [(name.lower(), value) for name, value in answer.getheaders()]
        assert len(dict(pairs)) == len(pairs), "a field came twice"
        return Reply(answer.status, dict(pairs), answer.read())

    def close(self) -> None:
        self._inner.close()


CLIENTS: Mapping[str, Callable[..., list[str]]] = {"curl": curl, "wget": wget, "aria2": aria2}


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a client to its end."""
    return subprocess.run(
        command,
        env=environment_without_home(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def path_of(name: str) -> str:
    """Return the path of a file of the site's repository."""
    return f"/download/{REPO}/{urllib.parse.quote(name)}"


def file_url(site: Site, name: str) -> str:
    """Return the URL of a file of the site's repository."""
    return site.server.url + path_of(name)


def head(site: Site, url: str) -> dict[str, str]:
    """Return the headers of a HEAD answer, by lower-case name."""
    done = subprocess.run(
        [
            *(need_program("curl"), "-q", "-sS", "-f", "-I"),
            *("-H", f"Authorization: Bearer {TOKEN}", url),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=TIMEOUT,
    )
    lines = done.stdout.splitlines()[1:]
    return {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines) if v}


def answer_of(url: str, folder: Path, *options: str) -> tuple[str, dict[str, str], bytes]:
    """Return status, headers in lower case and body, whatever the status is."""
    dump, out = folder / "headers", folder / "body"
    out.write_bytes(b"")
    command = curl(url, out, "-D", str(dump), "-w", "%{http_code}", *options)
    command.remove("-f")
    done = run(command)
    assert done.returncode == 0, done.stderr
    pairs = [line.partition(":") for line in dump.read_text().splitlines()[1:]]
    return done.stdout, {k.lower(): v.strip() for k, _, v in pairs if v}, out.read_bytes()


def ask(
    server: Process,
    path: str,
    *fields: tuple[str, str],
    method: str = "GET",
    token: str | None = TOKEN,
) -> Reply:
    """Ask once, on a new connection."""
    with closing(Connection(server.url, token)) as connection:
        return connection.ask(path, fields, method)
