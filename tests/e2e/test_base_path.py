"""The server below a path of a host, behind nginx: what clients get leads there again.

nginx removes the path and says so in X-Forwarded-Prefix, or leaves it to base_path.
"""

import base64
import json
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Launcher, Process, sha256_of
from tests.e2e.clients import Connection, curl, run
from tests.e2e.conftest import REPO, TOKEN, Site, serve_arguments
from tests.e2e.hub import run_hf, run_script
from tests.e2e.listeners import Programs

PATH = "/models/hf"
NAMES = ["big.bin", "config.json", "empty.bin"]
NGINX = """daemon off;
pid {folder}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
    uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
    server {{
        listen 127.0.0.1:{port};
        location {path}/ {{
            proxy_pass {target};
            proxy_http_version 1.1;
            proxy_buffering off;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header X-Forwarded-Prefix {prefix};
        }}
    }}
}}
"""
# How the server is started, what nginx adds to its address, and what it says in the field.
WAYS = {
    "nginx removes it": ((), "/", PATH),
    "base_path removes it": (("--base-path", PATH), "", '""'),
    "nginx removes it and base_path names it": (("--base-path", PATH), "/", '""'),
}


@dataclass
class Place:
    """A server behind nginx, and its URL as clients see it."""

    server: Process
    url: str
    host: str
    mode: str


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module", params=["plain", "native"])
def place(
    request: pytest.FixtureRequest,
    way: str,
    _running_site: Site,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("place")
    launched, programs = Launcher(folder), Programs(folder)
    flags, slash, prefix = WAYS[way]
    flags = (*flags, "--trusted-proxies", "127.0.0.1", "--xet-mode", request.param)
    try:
        server = launched.start(*serve_arguments(_running_site.origin.url, *flags))
        port = programs.start(
            "nginx",
            lambda _, file: ["-c", str(file), "-e", "stderr"],
            NGINX,
            path=PATH,
            target=server.url + slash,
            prefix=prefix,
        )
        host = f"http://127.0.0.1:{port}"
        yield Place(server, host + PATH, host, request.param)
        assert "Traceback" not in server.log
    finally:
        programs.stop()
        launched.stop_all()


def test_the_official_client_downloads(site: Site, place: Place, tmp_path: Path) -> None:
    script = "print(snapshot_download(sys.argv[1], allow_patterns=sys.argv[2:]))"
    found = run_script(sys.executable, place.url, tmp_path / "home", script, REPO, *NAMES)
    for name in NAMES:
        assert sha256_of(Path(found) / name) == site.uploaded.digests[name]
    assert ("GET /v2/reconstructions/" in place.server.log) is (place.mode == "native")


def test_the_command_line_downloads(site: Site, place: Place, tmp_path: Path) -> None:
    arguments = ("download", REPO, "text/corpus.bin", "--local-dir", str(tmp_path / "out"))
    run_hf(place.url, tmp_path / "home", *arguments)
    found = tmp_path / "out/text/corpus.bin"
    assert sha256_of(found) == site.uploaded.digests["text/corpus.bin"]


def test_git_lfs_is_led_to_the_path(site: Site, place: Place, tmp_path: Path) -> None:
    oid = site.uploaded.digests["big.bin"]
    question = json.dumps({"operation": "download", "objects": [{"oid": oid, "size": 1}]})
    basic = base64.b64encode(f"user:{TOKEN}".encode()).decode()
    target = tmp_path / "out"
    command = [
        *curl(f"{place.url}/{REPO}.git/info/lfs/objects/batch", target, "-d", question),
        *("-H", "Content-Type: application/vnd.git-lfs+json"),
    ]
    command = [each.replace(f"Bearer {TOKEN}", f"Basic {basic}") for each in command]
    assert run(command).returncode == 0
    (found,) = json.loads(target.read_text())["objects"]
    href = found["actions"]["download"]["href"]
    assert href.startswith(f"{place.url}/{REPO}.git/info/lfs/objects/")
    assert run(curl(href, target)).returncode == 0
    assert sha256_of(target) == oid


def test_links_lead_to_the_path(place: Place) -> None:
    """Lists, tokens, files and the page; and nothing leads beside the path."""
    agent = ("User-Agent", "hf_hub/2.4; hf_xet/1.8")
    with closing(Connection(place.host)) as connection:
        listing = connection.ask(
            f"{PATH}/api/models/{REPO}/tree/main?recursive=true&limit=1", [agent]
        )
        assert f"<{place.url}/api/models/{REPO}/tree/main?" in listing.headers["link"]
        head = connection.ask(f"{PATH}/{REPO}/resolve/main/big.bin", [agent], method="HEAD")
        assert head.status == 200
        if place.mode == "native":
            refresh = head.headers["x-xet-refresh-route"]
            assert refresh.startswith(f"{place.url}/api/models/{REPO}/xet-read-token/")
            links = head.headers["link"]
            assert f"<{refresh}>" in links
            assert f"<{place.url}/v1/reconstructions/" in links
            token = connection.ask(refresh.removeprefix(place.host))
            assert token.headers["x-xet-cas-url"] == place.url
            assert json.loads(token.body)["casUrl"] == place.url
        text = connection.ask(f"{PATH}/").body.decode()
        assert f"HF_ENDPOINT={place.url} " in text
        page = connection.ask(f"{PATH}/", [("Accept", "text/html")])
        assert f"HF_ENDPOINT={place.url} " in page.body.decode()
        missing = connection.ask(f"/{REPO}/resolve/main/big.bin")
        assert missing.status == 404  # nginx: it is beside the path
        outer = connection.ask(PATH)
        assert outer.status in (301, 308)
        assert outer.headers["location"] == f"{place.url}/"


def test_a_server_behind_the_server(
    site: Site, place: Place, launcher: Launcher, tmp_path: Path
) -> None:
    """The URL of a Hub may have a path: this one's."""
    outer = launcher.start(*serve_arguments(place.url, "--xet-mode", "native"))
    script = "print(snapshot_download(sys.argv[1], allow_patterns=sys.argv[2:]))"
    found = run_script(sys.executable, outer.url, tmp_path / "home", script, REPO, *NAMES)
    for name in NAMES:
        assert sha256_of(Path(found) / name) == site.uploaded.digests[name]
    assert run(curl(f"{outer.url}/download/{REPO}/big.bin", tmp_path / "out")).returncode == 0
    assert sha256_of(tmp_path / "out") == site.uploaded.digests["big.bin"]
