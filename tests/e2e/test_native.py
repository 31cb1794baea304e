"""Native Xet through the server: the official clients take tokens, reconstructions and packed data
from it, and nothing else.
"""

import http.client
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.conftest import Launcher, need_program
from tests.e2e.clients import TIMEOUT, Connection, Reply, curl, run
from tests.e2e.conftest import serve_arguments
from tests.e2e.hub import (
    OTHER_TOKEN,
    TOKEN,
    XET_FILE,
    read_tree,
    run_hf,
    run_script,
)
from tests.e2e.native import (
    EDITED,
    MULTIRANGE,
    PRIVATE,
    REPO,
    SECRET_FILE,
    Place,
    Site,
    count_packed,
    download,
    download_failing,
    find_flip,
    running_place,
)
from tests.waiting import wait_until
from xetserve.pipeline.cache.entry import Standing
from xetserve.xet.grants import open_grant, seal_grant
from xetserve.xet.signing import Sealer, derive_key
from xetserve.xet.xorb import ChunkRecord, iter_records

PROVEN_BYTES = "xetserve_cache_proven_bytes_total"

Start = Callable[..., Site]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with running_place(tmp_path_factory.mktemp("native")) as running:
        yield running


@pytest.fixture
def start(place: Place, tmp_path: Path) -> Iterator[Start]:
    """Start servers. In the end only they may have asked the origin, and no token may have gone
    where it does not belong.
    """
    launched = Launcher(tmp_path)
    place.control.set_faults()
    place.control.reset_requests()

    def start_one(mode: str = "native", *flags: str, **environment: str) -> Site:
        cache = tmp_path / "cache"
        given = ("--xet-mode", mode, "--cache-dir", str(cache), "--cache-min-free", "0", *flags)
        arguments = serve_arguments(place.origin.url, *given)
        return Site(place, launched.start(*arguments, **environment), cache)

    yield start_one
    place.control.set_faults()
    launched.stop_all()
    requests = place.control.requests()
    assert [r for r in requests if not re.match(r"xetserve/[0-9.]+( |$)", r["user_agent"])] == []
    assert {r["authorization"] for r in requests if r["kind"] == "data"} <= {None}
    for request in requests:
        assert request["kind"] == "hub" or TOKEN not in (request["authorization"] or "")
    for server in launched.running:
        assert "Traceback" not in server.log
        assert TOKEN not in server.log
        assert "grant=" not in server.log.replace("grant=***", "")


CLIENTS = {
    "today's": ("new", {}),
    "today's, several ranges at once": ("new", MULTIRANGE),
    "today's, v1": ("new", {"HF_XET_CLIENT_RECONSTRUCTION_API_VERSION": "1"}),
    "yesterday's": ("old", {}),
}


@pytest.mark.parametrize("client", CLIENTS)
def test_a_whole_repository_and_a_single_file(
    start: Start, place: Place, request: pytest.FixtureRequest, tmp_path: Path, client: str
) -> None:
    generation, environment = CLIENTS[client]
    python = request.getfixturevalue("old_client") if generation == "old" else sys.executable
    site = start()
    script = f"""
        snapshot_download(sys.argv[1], local_dir="{tmp_path}/model")
        print(hf_hub_download(sys.argv[1], sys.argv[2]))
    """
    single = run_script(
        python, site.server.url, tmp_path / "home", script, REPO, EDITED, **environment
    )
    assert read_tree(tmp_path / "model") == place.files
    assert Path(single).read_bytes() == place.files[EDITED]
    log = site.server.log
    assert "/xet-read-token/" in log
    assert "reconstructions/" in log
    assert '"GET /xorbs/' in log


JS_SCRIPT = """
    import { downloadFile } from "@huggingface/hub";
    import { writeFileSync } from "node:fs";
    const [hubUrl, accessToken, repo, path, target] = process.argv.slice(2);
    const blob = await downloadFile({ hubUrl, accessToken, repo, path, xet: true });
    writeFileSync(target, Buffer.from(await blob.arrayBuffer()));
    console.log(blob.constructor.name);
"""


@pytest.fixture(scope="session")
def js_client(node_client: Path) -> Path:
    """A script that downloads a file with the official client for JavaScript."""
    script = node_client / "download.mjs"
    script.write_text(JS_SCRIPT)
    return script


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        pytest.param(("native",), "XetBlob", id="native"),
        pytest.param(("auto", "--native-from", "0"), "XetBlob", id="auto, native preferred"),
        pytest.param(("auto",), "WebBlob", id="auto"),
        pytest.param(("plain",), "WebBlob", id="plain"),
    ],
)
def test_the_client_for_javascript(
    start: Start, place: Place, js_client: Path, tmp_path: Path, flags: tuple[str, ...], kind: str
) -> None:
    """It asks for all ranges of a xorb at once, and takes nothing but a multipart answer."""
    site = start(*flags)
    for name in (EDITED, XET_FILE):
        arguments = (site.server.url, TOKEN, REPO, name, str(tmp_path / "out"))
        done = run([need_program("node"), str(js_client), *arguments])
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == kind
        assert (tmp_path / "out").read_bytes() == place.files[name]


def test_the_command_line_client(start: Start, place: Place, tmp_path: Path) -> None:
    site = start()
    out = str(tmp_path / "out")
    run_hf(site.server.url, tmp_path / "home", "download", REPO, "--local-dir", out)
    assert read_tree(tmp_path / "out") == place.files
    assert '"GET /xorbs/' in site.server.log


def download_plain(site: Site, target: Path, name: str) -> bytes:
    """Download a file with curl."""
    done = run(curl(f"{site.server.url}/{REPO}/resolve/main/{name}", target))
    assert done.returncode == 0, done.stderr
    return target.read_bytes()


@pytest.mark.parametrize("name", [XET_FILE, EDITED])
@pytest.mark.parametrize("is_native_first", [True, False], ids=["native first", "plain first"])
def test_plain_and_native_clients_cost_the_packed_bytes_once(
    start: Start, place: Place, tmp_path: Path, name: str, is_native_first: bool
) -> None:
    site = start()
    expected = place.files[name]

    def fetch(number: int, *, is_native: bool) -> int:
        """Download the file; gives the packed bytes that the origin was asked for."""
        site.control.reset_requests()
        target = tmp_path / str(number)
        given = download(site, target, name) if is_native else download_plain(site, target, name)
        assert given == expected
        site.wait_for_cache()
        return count_packed(site.asked("data"))

    first = fetch(1, is_native=is_native_first)
    assert 0.99 * first < len(expected) <= first + 310_000  # zeros are packed to nothing
    assert fetch(2, is_native=not is_native_first) == 0
    site.control.set_faults(data_status_burst={"status": 500, "count": 10_000})
    assert fetch(3, is_native=is_native_first) == 0


ORIGINS: dict[str, dict[str, Any]] = {
    "one URL for each range": {"v2_one_entry_per_range": True},
    "one range at a time": {"multipart_off": True},
    "no v2, for this file": {"v2_status": 404},
    "no v2 at all": {"v2_status": 501},
    "whole terms": {"untrimmed_terms": True},
    "an expired URL": {"data_403_first": 1},
    "URLs that expire at once, now and then": {"data_403_first": 3},
    "tokens of twenty seconds": {"token_lifetime": 20},
    "broken connections": {"reset_first": 2},
    "short bodies": {"short_body_first": 2},
    "an overloaded store": {"data_status_burst": {"status": 503, "count": 2}},
    "an overloaded CAS": {"cas_status_burst": {"status": 503, "count": 2}},
}


@pytest.mark.parametrize("environment", [{}, MULTIRANGE], ids=["one by one", "several ranges"])
@pytest.mark.parametrize("faults", ORIGINS)
def test_whatever_the_origin_is_like(
    start: Start, place: Place, tmp_path: Path, faults: str, environment: dict[str, str]
) -> None:
    site = start()
    site.control.set_faults(**ORIGINS[faults])
    assert download(site, tmp_path / "home", EDITED, **environment) == place.files[EDITED]
    assert site.asked("data")


# The first bytes that EDITED got when it was edited, and bytes that it has from before.
PLACES = {"in a xorb of its own": 500_100, "in a xorb of another file's": 1_000_000}


@pytest.mark.parametrize("environment", [{}, MULTIRANGE], ids=["one by one", "several ranges"])
@pytest.mark.parametrize("where", PLACES)
def test_a_wrong_byte_fails_the_client_and_leaves_the_cache(
    start: Start, place: Place, tmp_path: Path, where: str, environment: dict[str, str]
) -> None:
    site = start()
    site.control.set_faults(**find_flip(place, EDITED, PLACES[where]))
    download_failing(site, tmp_path / "wrong", EDITED)
    assert "all parts together are not file" in site.server.log
    site.wait_for_cache()
    # Who begins anew gets the right file: nothing wrong was kept.
    site.control.set_faults()
    assert download(site, tmp_path / "right", EDITED, **environment) == place.files[EDITED]
    # A file that is known is checked chunk by chunk, and what is damaged is fetched again.
    for entry in site.cache.glob("??/*/*.xc"):
        entry.unlink()
    site.control.set_faults(**find_flip(place, EDITED, PLACES[where]))
    download_failing(site, tmp_path / "again", EDITED)
    assert "is not the file's" in site.server.log


@pytest.mark.parametrize("environment", [{}, MULTIRANGE], ids=["one by one", "several ranges"])
def test_what_is_proven_is_not_decoded_again(
    start: Start, place: Place, tmp_path: Path, environment: dict[str, str]
) -> None:
    """All of it leaves the cache as it is; what is damaged there does not leave."""
    site = start()
    assert download(site, tmp_path / "cold", EDITED) == place.files[EDITED]
    wait_until(lambda: all(is_proven(path) for path in site.cache.glob("??/*/*.xc")))
    assert read_proven(site) == 0
    num_packed = count_packed(site.asked("data"))
    site.control.reset_requests()
    assert download(site, tmp_path / "warm", EDITED, **environment) == place.files[EDITED]
    assert read_proven(site) == num_packed
    assert site.asked("data") == []

    path = max(site.cache.glob("??/*/*.xc"), key=lambda each: each.stat().st_size)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    assert download(site, tmp_path / "damaged", EDITED, **environment) == place.files[EDITED]
    assert site.asked("data") != []
    assert read_proven(site) < 2 * num_packed


def is_proven(path: Path) -> bool:
    return Standing.of(path.name) is Standing.PROVEN


def read_proven(site: Site) -> int:
    """Packed bytes that native clients have got without decoding."""
    with closing(Connection(site.server.url, None)) as connection:
        lines = connection.ask("/metrics").body.decode().splitlines()
    (value,) = [line.split()[1] for line in lines if line.startswith(f"{PROVEN_BYTES} ")]
    return int(float(value))


def test_a_plain_read_that_fails_leaves_nothing_wrong_to_native_clients(
    start: Start, place: Place, tmp_path: Path
) -> None:
    site = start()
    site.control.set_faults(**find_flip(place, XET_FILE, 1_500_000))
    command = curl(f"{site.server.url}/{REPO}/resolve/main/{XET_FILE}", tmp_path / "out")
    assert run(command).returncode in (18, 56)
    site.wait_for_cache()
    site.control.set_faults()
    assert download(site, tmp_path / "home", XET_FILE) == place.files[XET_FILE]


def test_workers_take_each_others_tokens_and_urls(
    start: Start, place: Place, tmp_path: Path
) -> None:
    site = start("native", "--workers", "3")
    for number in range(3):
        assert download(site, tmp_path / str(number), EDITED) == place.files[EDITED]


def test_a_server_behind_a_server(start: Start, place: Place, tmp_path: Path) -> None:
    inner = start()
    arguments = serve_arguments(inner.server.url, "--xet-mode", "native")
    launched = Launcher(tmp_path / "home")
    launched.folder.mkdir()
    try:
        outer = Site(place, launched.start(*arguments), inner.cache)
        for number, environment in enumerate(({}, MULTIRANGE)):
            home = tmp_path / str(number)
            assert download(outer, home, EDITED, **environment) == place.files[EDITED]
        assert '"GET /xorbs/' in outer.server.log
        assert '"GET /xorbs/' in inner.server.log
    finally:
        launched.stop_all()


class TestAuto:
    """Only who would fail otherwise is sent another way."""

    def test_ordinary_files_are_plain(self, start: Start, place: Place, tmp_path: Path) -> None:
        site = start("auto")
        assert download(site, tmp_path / "home", EDITED) == place.files[EDITED]
        assert "/xorbs/" not in site.server.log

    def test_files_above_the_limit_are_native(
        self, start: Start, place: Place, tmp_path: Path
    ) -> None:
        site = start("auto", "--native-from", "1MB")
        script = f"""
            snapshot_download(sys.argv[1], local_dir="{tmp_path}/model")
            for name in (sys.argv[2], "odd/100% + more.bin"):
                info, = HfApi().get_paths_info(sys.argv[1], [name])
                data = get_hf_file_metadata(hf_hub_url(sys.argv[1], name)).xet_file_data
                print(info.xet_hash is not None, data is not None)
        """
        printed = run_script(
            sys.executable, site.server.url, tmp_path / "home", script, REPO, XET_FILE
        )
        assert printed == "True True\nFalse False"
        assert read_tree(tmp_path / "model") == place.files
        log = site.server.log
        asked = set(re.findall(r'"GET /v2/reconstructions/([0-9a-f]{64})', log))
        assert len(asked) == 2  # the two large ones
        assert re.search(r'"GET /\S+/resolve/\S+/odd/100%25%20%2B%20more.bin"', log)

    def test_other_clients_are_told_nothing(self, start: Start) -> None:
        site = start("auto", "--native-from", "0")
        connection = Connection(site.server.url)
        for target in (f"/{REPO}/resolve/main/{XET_FILE}", f"/api/models/{REPO}/tree/main"):
            for agent, is_told in (("curl/8", False), ("x; hf_hub/2.4.0", True)):
                reply = connection.ask(target, [("User-Agent", agent)])
                assert (b"xetHash" in reply.body or "x-xet-hash" in reply.headers) is is_told
                assert "user-agent" in reply.headers["vary"].lower()
        # But whoever asks for a token knows what it is for.
        assert connection.ask(f"/api/models/{REPO}/xet-read-token/main").status == 200
        connection.close()


def test_plain_serves_nothing_native(start: Start) -> None:
    site = start("plain")
    connection = Connection(site.server.url)
    for target in (
        f"/api/models/{REPO}/xet-read-token/main",
        f"/v1/reconstructions/{'0' * 64}",
        f"/v1/reconstructions?file_id={'0' * 64}",
        f"/xorbs/{'0' * 64}?grant=x",
    ):
        assert connection.ask(target, [("User-Agent", "x; hf_hub/2; hf_xet/1.8")]).status == 404
    connection.close()


def ask_several(site: Site, names: list[str], token: str, form: str) -> dict[str, Any]:
    """Ask how several files are built."""
    if form == "GET":
        query = "&".join(f"file_id={name}" for name in names)
        reply = ask(site, f"/v1/reconstructions?{query}", token)
    else:
        body = json.dumps([{"prefix": "default", "hash": name} for name in names]).encode()
        fields = [("Content-Type", "application/json")]
        with closing(Connection(site.server.url, token)) as connection:
            reply = connection.ask("/v1/reconstructions", fields, "POST", body=body)
    assert reply.status == 200, reply
    value: dict[str, Any] = json.loads(reply.body)
    return value


@pytest.mark.parametrize("form", ["POST", "GET"])
def test_several_files_in_one_question(start: Start, form: str) -> None:
    """Two versions of a file, which have most of their chunks in common, and a small one."""
    site = start("native")
    token = get_token(site, REPO)
    hashes = {
        name: ask(site, f"/{REPO}/resolve/main/{quote(name)}", TOKEN, method="HEAD").headers[
            "x-xet-hash"
        ]
        for name in (XET_FILE, EDITED, "odd/100% + more.bin")
    }
    value = ask_several(site, list(hashes.values()), token, form)
    data: dict[str, dict[int, bytes]] = {}
    for xorb, infos in value["fetch_info"].items():
        for info in infos:
            assert info["url"].startswith(f"{site.server.url}/xorbs/{xorb}?file=")
            first, last = info["url_range"]["start"], info["url_range"]["end"]
            wanted = ("Range", f"bytes={first}-{last}")
            reply = ask(site, info["url"].removeprefix(site.server.url), None, wanted)
            assert (reply.status, len(reply.body)) == (206, last + 1 - first)
            chunks = map(ChunkRecord.decode, iter_records(reply.body))
            data.setdefault(xorb, {}).update(enumerate(map(bytes, chunks), info["range"]["start"]))
    for name, file_hash in hashes.items():
        content = b"".join(
            data[term["hash"]][number]
            for term in value["files"][file_hash]
            for number in range(term["range"]["start"], term["range"]["end"])
        )
        assert content == site.place.files[name]
    asked = [one["path"].rpartition("/")[2] for one in site.asked("cas")]
    assert sorted(asked) == sorted(hashes.values())
    assert "Traceback" not in site.server.log


NEW_SECRET = "what they will know next and nobody else"
SHARED_SECRET = "two servers know this and nobody else"


def ask(
    site: Site, target: str, token: str | None = None, *fields: tuple[str, str], method: str = "GET"
) -> Reply:
    """Send one request with a token, or without any."""
    connection = http.client.HTTPConnection(
        site.server.url.removeprefix("http://"), timeout=TIMEOUT
    )
    given = [] if token is None else [("Authorization", f"Bearer {token}")]
    connection.request(method, target, headers=dict([*given, *fields]))
    answer = connection.getresponse()
    headers = {name.lower(): value for name, value in answer.getheaders()}
    reply = Reply(answer.status, headers, answer.read())
    connection.close()
    return reply


def get_token(site: Site, repo: str = PRIVATE, token: str = TOKEN) -> str:
    """A token for the CAS that the server plays."""
    reply = ask(site, f"/api/models/{repo}/xet-read-token/main", token)
    assert reply.status == 200
    value = json.loads(reply.body)
    assert value["casUrl"] == reply.headers["x-xet-cas-url"] == site.server.url
    assert value["accessToken"] == reply.headers["x-xet-access-token"]
    assert str(value["exp"]) == reply.headers["x-xet-token-expiration"]
    return str(value["accessToken"])


@dataclass
class Private:
    """A file that only its owner may read, warm in the cache."""

    site: Site
    content: bytes
    file_hash: str
    data_target: str  # the data URL that the owner got, and the range for it
    range: str

    def assert_refused(self, reply: Reply, *statuses: int) -> None:
        assert reply.status in statuses, reply
        assert "error" in json.loads(reply.body)
        assert self.content[1000:1064] not in reply.body


@pytest.fixture
def private(start: Start, place: Place, tmp_path: Path) -> Private:
    site = start("native", XETSERVE_NATIVE_SECRET=SHARED_SECRET)
    script = f"print(hf_hub_download({PRIVATE!r}, {SECRET_FILE!r}))"
    path = run_script(sys.executable, site.server.url, tmp_path / "home", script)
    content = Path(path).read_bytes()
    site.wait_for_cache()
    assert list(site.cache.glob("??/*/*.xc"))
    target = f"/{PRIVATE}/resolve/main/{SECRET_FILE}"
    file_hash = ask(site, target, TOKEN, method="HEAD").headers["x-xet-hash"]
    reply = ask(site, f"/v1/reconstructions/{file_hash}", get_token(site))
    ((info,),) = json.loads(reply.body)["fetch_info"].values()
    first, last = info["url_range"]["start"], info["url_range"]["end"]
    assert info["url"].startswith(f"{site.server.url}/xorbs/")
    target = info["url"].removeprefix(site.server.url)
    site.control.reset_requests()
    return Private(site, content, file_hash, target, f"bytes={first}-{last}")


class TestRights:
    """A warm cache gives nothing to who may not read the file."""

    @pytest.mark.parametrize("token", [OTHER_TOKEN, None, "hf_" + "n" * 34])
    def test_by_path_and_by_hash(self, private: Private, token: str | None) -> None:
        for target in (
            f"/download/{PRIVATE}/{SECRET_FILE}",
            f"/{PRIVATE}/resolve/main/{SECRET_FILE}",
            f"/download-hash/{private.file_hash}?repo={PRIVATE}",
            f"/api/models/{PRIVATE}/xet-read-token/main",
        ):
            private.assert_refused(ask(private.site, target, token), 401, 403, 404)

    def test_by_hash_through_another_repository(self, private: Private) -> None:
        target = f"/download-hash/{private.file_hash}?repo={REPO}"
        for token in (OTHER_TOKEN, TOKEN):
            private.assert_refused(ask(private.site, target, token), 404)

    @pytest.mark.parametrize("version", ["/v1", "/v2", ""])
    def test_by_reconstruction(self, private: Private, version: str) -> None:
        site, target = private.site, f"{version}/reconstructions/{private.file_hash}"
        good = get_token(site)
        own = Sealer(derive_key("somebody else's")).seal("token", [site.control.url, "x", 2e9])
        changed = good[:-9] + ("B" if good[-9] == "A" else "A") + good[-8:]
        for token in (None, TOKEN, "x", changed, own):
            private.assert_refused(ask(site, target, token), 401)
        for token in (get_token(site, REPO, OTHER_TOKEN), get_token(site, REPO)):
            private.assert_refused(ask(site, target, token), 404)  # the CAS's own word
        site.control.set_faults(token_lifetime=0)
        private.assert_refused(ask(site, target, get_token(site)), 401)
        site.control.set_faults()
        assert ask(site, target, good).status == 200

    def test_by_a_batch(self, private: Private) -> None:
        site = private.site
        public = ask(site, f"/{REPO}/resolve/main/{XET_FILE}", TOKEN, method="HEAD")
        names = [public.headers["x-xet-hash"], private.file_hash]
        target = "/v1/reconstructions?" + "&".join(f"file_id={name}" for name in names)
        good = get_token(site)
        for token in (None, TOKEN, "x"):
            private.assert_refused(ask(site, target, token), 401)
        # What a token may read of them is told by itself only.
        for token in (get_token(site, REPO, OTHER_TOKEN), get_token(site, REPO), good):
            private.assert_refused(ask(site, target, token), 404)
        target = f"/v1/reconstructions?file_id={private.file_hash}"
        assert ask(site, target, good).status == 200
        private.assert_refused(ask(site, target, get_token(site, REPO)), 404)

    def test_by_a_size(self, private: Private) -> None:
        target = f"/v1/files/{private.file_hash}"
        reply = ask(private.site, target, get_token(private.site), method="HEAD")
        assert (reply.status, reply.headers["content-length"]) == (200, str(len(private.content)))
        stranger = get_token(private.site, REPO, OTHER_TOKEN)
        assert ask(private.site, target, stranger, method="HEAD").status == 404
        assert ask(private.site, target, method="HEAD").status == 401

    def test_by_data_url(self, private: Private) -> None:
        site, wanted = private.site, ("Range", private.range)
        path, _, text = private.data_target.partition("&grant=")
        sealer = Sealer(derive_key(SHARED_SECRET))
        grant = open_grant(sealer, text)
        assert grant is not None
        last = int(private.range.rpartition("-")[2])
        stranger = Sealer(derive_key("somebody else's"))
        for target in (
            path,
            f"{path}&grant=",
            f"{path}&grant={seal_grant(sealer, grant._replace(expires=time.time()))}",
            f"/xorbs/{'1' * 64}?grant={text}",
        ):
            private.assert_refused(ask(site, target, TOKEN, wanted), 403)
        for other in (
            f"{text[:60]}{'B' if text[60] == 'A' else 'A'}{text[61:]}",
            seal_grant(stranger, grant),
        ):
            private.assert_refused(ask(site, f"{path}&grant={other}", TOKEN, wanted), 409)
        for other in (
            f"0-{last + 1}",
            f"{last + 1}-{last + 2}",
            "5-70000",
            "0-0",
            "0-",
            "-5",
            "5-3",
            "x",
        ):
            reply = ask(site, private.data_target, None, ("Range", f"bytes={other}"))
            private.assert_refused(reply, 403)
        private.assert_refused(ask(site, private.data_target), 403)
        # What is right is served, whoever brings it, from the cache.
        reply = ask(site, private.data_target, None, wanted)
        assert (reply.status, len(reply.body)) == (206, last + 1)
        assert reply.headers["content-range"] == f"bytes 0-{last}/*"
        assert private.content[1000:1064] in reply.body
        assert ask(site, private.data_target, method="HEAD").status == 200
        assert site.asked("data") == []

    def test_what_is_sealed_for_one_thing_is_no_good_for_another(self, private: Private) -> None:
        text = private.data_target.partition("&grant=")[2]
        target = f"/v1/reconstructions/{private.file_hash}"
        private.assert_refused(ask(private.site, target, text), 401)
        token = get_token(private.site)
        path = private.data_target.partition("&grant=")[0]
        reply = ask(private.site, f"{path}&grant={token}", None, ("Range", private.range))
        private.assert_refused(reply, 409)


def test_servers_with_one_secret_take_each_others_tokens(private: Private, start: Start) -> None:
    other = start("native", XETSERVE_NATIVE_SECRET=SHARED_SECRET)
    rotating = start("native", XETSERVE_NATIVE_SECRET=f"{NEW_SECRET},{SHARED_SECRET}")
    stranger = start("native", XETSERVE_NATIVE_SECRET=NEW_SECRET)
    target = f"/v2/reconstructions/{private.file_hash}"
    wanted = ("Range", private.range)
    assert ask(stranger, target, get_token(rotating)).status == 200  # the first one signs
    for site, status, data_status in (
        (other, 200, 206),
        (rotating, 200, 206),
        (stranger, 401, 409),
    ):
        assert ask(site, target, get_token(private.site)).status == status
        assert ask(site, private.data_target, None, wanted).status == data_status


def test_what_else_a_native_client_asks(private: Private) -> None:
    site = private.site
    name = private.file_hash
    token = get_token(site)
    telemetry = ask(site, "/v1/telemetry", token, ("Content-Length", "0"), method="POST")
    assert telemetry.status == 204
    for target, status in (
        ("/v1/reconstructions/xyz", 400),
        (f"/v1/reconstructions/{'1' * 64}", 404),
        (f"/v1/chunks/default/{name}", 404),
        (f"/v2/reconstructions?file_id={name}", 404),
        (f"/v1/reconstructions?file_id={name}&file_id=xyz", 400),
        (f"/api/models/{PRIVATE}/xet-write-token/main", 403),
    ):
        given = TOKEN if target.startswith("/api") else token
        private.assert_refused(ask(site, target, given), status)
    target, size = f"/v2/reconstructions/{name}", len(private.content)
    private.assert_refused(ask(site, target, token, method="POST"), 405)
    for text, status in (
        (f"bytes={size}-", 416),
        (f"bytes={size}-{size + 5}", 416),
        ("bytes=9-5", 416),
        ("bytes=-5", 416),
        (f"bytes={size - 1}-{size + 10**9}", 200),
        ("bytes=5-", 200),
    ):
        assert ask(site, target, token, ("Range", text)).status == status, text


def test_links_lead_here(start: Start) -> None:
    site = start()
    reply = ask(site, f"/{REPO}/resolve/main/{XET_FILE}", TOKEN, method="HEAD")
    token_url, info_url = re.findall(r"<([^>]*)>", reply.headers["link"])
    commit = reply.headers["x-repo-commit"]
    assert token_url == f"{site.server.url}/api/models/{REPO}/xet-read-token/{commit}"
    assert reply.headers["x-xet-refresh-route"] == token_url
    assert info_url == f"{site.server.url}/v1/reconstructions/{reply.headers['x-xet-hash']}"
    other = ask(site, f"/{REPO}/resolve/main/notes.txt", TOKEN, method="HEAD")
    assert "link" not in other.headers
    # Some would rather hear of the file than have it.
    accept = ("Accept", "application/vnd.xet-fileinfo+json, */*")
    info = ask(site, f"/{REPO}/resolve/main/{XET_FILE}", TOKEN, accept, ("Range", "bytes=0-0"))
    assert (info.status, info.headers["content-type"]) == (200, accept[1].split(",")[0])
    assert json.loads(info.body) == {
        "hash": reply.headers["x-xet-hash"],
        "refreshUrl": token_url,
        "reconstructionUrl": info_url,
    }
    assert info.headers["x-linked-size"] == reply.headers["x-linked-size"]
    plain = ask(site, f"/{REPO}/resolve/main/notes.txt", TOKEN, accept, ("Range", "bytes=0-0"))
    assert (plain.status, plain.body) == (206, b"p")
