"""What a server knows without the Hub: for how long it believes answers, what it gives when the
origin is gone.
"""

import json
import random
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.conftest import Launcher, OriginControl, Process, sha256_of
from tests.e2e.clients import Connection, ask, curl, run
from tests.e2e.commands import run_command
from tests.e2e.conftest import REPO as SHARED_REPO
from tests.e2e.conftest import Uploaded, serve_arguments
from tests.e2e.hub import (
    OTHER_TOKEN,
    PLAIN_FILE,
    TOKEN,
    XET_FILE,
    make_files,
    read_tree,
    run_script,
    start_origin,
    upload,
    write_files,
)
from tests.waiting import wait_until

REPO = "tester/kept"
PRIVATE = "tester/kept-private"
STALE = ("--stale-for", "3600")


@dataclass
class Place:
    """A filled origin that can be stopped and started again at the same port, and a folder for
    caches.
    """

    base: Path
    files: dict[str, bytes]
    launcher: Launcher
    origin: Process
    port: int

    @property
    def hub_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def control(self) -> OriginControl:
        return OriginControl(self.hub_url)

    def start_server(self, cache: Path, *flags: str, offline: bool = False) -> Process:
        """Start a server with a cache, and the default times unless flags say otherwise."""
        environment = {"XETSERVE_OFFLINE": "1"} if offline else {}
        return self.launcher.start(
            *serve_arguments(self.hub_url, "--metadata-ttl", "30", "--upstream-timeout", "3"),
            *("--cache-dir", str(cache), "--cache-min-free", "0", *flags),
            **environment,
        )


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """The folder of an origin with a public and a private model of the same files, and these."""
    base = tmp_path_factory.mktemp("filled")
    files = make_files()
    source = random.Random(8)
    # What comes back to the same chunks is not asked for twice.
    pattern = source.randbytes(3_000_000)
    files["repeats.bin"] = pattern + source.randbytes(9_000_000) + pattern * 4
    write_files(base / "files", files)
    launched = Launcher(base)
    try:
        origin = start_origin(launched, base / "origin")
        for repo, flags in ((REPO, []), (PRIVATE, ["--private"])):
            upload(sys.executable, origin.url, base / "home", "model", repo, base / "files", *flags)
    finally:
        launched.stop_all()
    return base, files


@pytest.fixture
def place(
    filled: tuple[Path, dict[str, bytes]], tmp_path: Path, launcher: Launcher
) -> Iterator[Place]:
    base, files = filled
    shutil.copytree(base / "origin", tmp_path / "origin")
    origin = start_origin(launcher, tmp_path / "origin")
    yield Place(tmp_path, files, launcher, origin, int(origin.url.rpartition(":")[2]))
    for process in launcher.running:
        assert "Traceback" not in process.log


def download_all(server: Process, home: Path, repo: str = REPO, **more: str | None) -> None:
    script = f"snapshot_download({repo!r}, local_dir={str(home / 'out')!r})"
    run_script(sys.executable, server.url, home, script, **more)  # type: ignore[arg-type]


def wait_for_disk(cache: Path) -> None:
    """Wait until what is being written is there."""
    wait_until(lambda: not any((cache / "tmp").iterdir()))


def test_a_warm_repository_while_the_hub_is_gone(place: Place, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    server = place.start_server(cache, *STALE, "--metadata-ttl", "0")
    download_all(server, tmp_path / "warm")
    wait_for_disk(cache)
    place.origin.stop()
    download_all(server, tmp_path / "stale")
    assert read_tree(tmp_path / "stale" / "out") == place.files
    reply = ask(server, f"/{REPO}/resolve/main/{XET_FILE}", ("Range", "bytes=1000000-1000099"))
    assert (reply.status, reply.body) == (206, place.files[XET_FILE][1_000_000:1_000_100])
    assert int(reply.headers["x-xetserve-stale"]) >= 0
    info = ask(server, f"/api/models/{REPO}/revision/main")
    assert (info.status, json.loads(info.body)["id"]) == (200, REPO)
    assert "x-xetserve-stale" in info.headers


@pytest.mark.parametrize(
    ("flags", "status", "state"),
    [
        pytest.param((), 200, "degraded", id="old answers"),
        pytest.param(("--stale-for", "0", "--cache-dir", "cache"), 200, "degraded", id="a cache"),
        pytest.param(("--stale-for", "0"), 503, "unready", id="nothing is left"),
    ],
)
def test_ready_without_the_hub(
    place: Place, tmp_path: Path, flags: tuple[str, ...], status: int, state: str
) -> None:
    place.origin.stop()
    flags = tuple(str(tmp_path / each) if each == "cache" else each for each in flags)
    server = place.launcher.start(*serve_arguments(place.hub_url, *flags))
    reply = ask(server, "/ready")
    found = json.loads(reply.body)
    assert (reply.status, found["status"], found["cause"]) == (status, state, "hub")
    assert ("retry-after" in reply.headers) is (status == 503)


def test_figures_tell_of_a_hub_that_is_gone(place: Place, tmp_path: Path) -> None:
    """Though nobody asks /ready, and whichever worker has noticed it."""
    place.origin.stop()
    server = place.launcher.start(*serve_arguments(place.hub_url, "--workers", "2"))
    wait_until(lambda: b'xetserve_degraded{cause="hub"} 1' in ask(server, "/metrics").body)
    start_origin(place.launcher, tmp_path / "origin", port=place.port)
    wait_until(lambda: b'xetserve_degraded{cause="hub"} 0' in ask(server, "/metrics").body)
    assert json.loads(ask(server, "/ready").body) == {"status": "ready"}


def test_a_commit_is_served_while_the_hub_is_gone_and_a_branch_for_a_while(
    place: Place, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    flags = ("--stale-for", "1", "--metadata-ttl", "0")
    server = place.start_server(cache, *flags)
    commit = ask(server, f"/{REPO}/resolve/main/{XET_FILE}", method="HEAD").headers["x-repo-commit"]
    urls = {
        revision: [f"/{REPO}/resolve/{revision}/{name}" for name in (XET_FILE, PLAIN_FILE)]
        for revision in ("main", commit)
    }
    for url in (*urls["main"], *urls[commit]):
        assert ask(server, url).status == 200
    wait_for_disk(cache)
    place.origin.stop()
    begun = time.monotonic()
    wait_until(lambda: time.monotonic() - begun > 1.1)
    for _ in range(2):
        for url, name in zip(urls[commit], (XET_FILE, PLAIN_FILE), strict=True):
            reply = ask(server, url)
            assert (reply.status, reply.body) == (200, place.files[name])
            assert int(reply.headers["x-xetserve-stale"]) >= 1
        assert {ask(server, url).status for url in urls["main"]} == {502}
        server.stop()
        server = place.start_server(cache, *flags)
    server.stop()
    strict = place.start_server(cache, *flags, "--stale-permission", "1")
    assert {ask(strict, url).status for url in urls[commit]} == {502}


def test_a_warm_file_while_the_hub_answers_429(place: Place, tmp_path: Path) -> None:
    server = place.start_server(tmp_path / "cache", "--metadata-ttl", "0")
    url = f"/{REPO}/resolve/main/{XET_FILE}"
    assert ask(server, url).status == 200
    wait_for_disk(tmp_path / "cache")
    place.control.reset_requests()
    place.control.set_faults(
        hub_status_burst={"status": 429, "count": 10_000, "retry_after": 60},
        cas_status_burst={"status": 429, "count": 10_000, "retry_after": 60},
    )
    for _ in range(5):
        assert ask(server, url).body == place.files[XET_FILE]
    # One question of each kind, not five times a minute: the entry, and the token or the plan.
    assert len(place.control.requests()) <= 3
    place.control.set_faults()


def test_a_warm_repository_offline(place: Place, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    server = place.start_server(cache)
    download_all(server, tmp_path / "warm")
    wait_for_disk(cache)
    server.stop()
    place.control.reset_requests()
    # The origin is there, and must not be asked all the same.
    server = place.start_server(cache, offline=True)
    download_all(server, tmp_path / "offline")
    assert read_tree(tmp_path / "offline" / "out") == place.files
    for name in (XET_FILE, "repeats.bin", PLAIN_FILE):
        content = place.files[name]
        for start, end in (
            (0, 1),
            (len(content) // 3, len(content) // 2),
            (len(content) - 1, None),
        ):
            last = "" if end is None else end - 1
            reply = ask(server, f"/download/{REPO}/{name}", ("Range", f"bytes={start}-{last}"))
            assert (reply.status, reply.body) == (206, content[start:end])
    assert ask(server, "/ready").status == 200
    head = ask(server, f"/download/{REPO}/{XET_FILE}", method="HEAD")
    assert (head.status, head.headers["x-linked-size"]) == (200, str(len(place.files[XET_FILE])))
    assert place.control.requests() == []


def test_offline_what_is_not_stored_is_a_timeout(place: Place, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    server = place.start_server(cache)
    assert ask(server, f"/{REPO}/resolve/main/{XET_FILE}", method="HEAD").status == 200
    assert ask(server, f"/{REPO}/resolve/main/no.bin", method="HEAD").status == 404
    server.stop()
    server = place.start_server(cache, offline=True)
    assert ask(server, f"/{REPO}/resolve/main/{XET_FILE}", method="HEAD").status == 200
    assert ask(server, f"/{REPO}/resolve/main/no.bin").headers["x-error-code"] == "EntryNotFound"
    for path in (
        f"/{REPO}/resolve/main/{XET_FILE}",  # its plan and its data were never asked for
        f"/{REPO}/resolve/main/{PLAIN_FILE}",
        f"/api/models/{REPO}/tree/main",
        "/api/whoami-v2",
        f"/download/{REPO}/config.json",
        "/download-hash/" + "0" * 64,
    ):
        reply = ask(server, path)
        assert reply.status == 504, path
        assert "offline" in json.loads(reply.body)["error"]
    assert ask(server, "/ready").status == 200


def test_offline_with_a_piece_missing(place: Place, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    server = place.start_server(cache)
    download_all(server, tmp_path / "warm")
    wait_for_disk(cache)
    server.stop()
    for folder in ("??", "plain"):
        for entry in cache.glob(f"{folder}/**/*"):
            if entry.is_file():
                entry.unlink()
    server = place.start_server(cache, offline=True)
    for path in (XET_FILE, PLAIN_FILE):
        assert ask(server, f"/{REPO}/resolve/main/{path}", method="HEAD").status == 200
        assert ask(server, f"/{REPO}/resolve/main/{path}").status == 504


def test_a_site_without_a_network(place: Place, tmp_path: Path) -> None:
    """Pulled here, carried there, served there: what is public to everybody, and the rest with the
    token that it was pulled with, and no other.
    """
    warm, there, archive = tmp_path / "warm", tmp_path / "there", tmp_path / "carried.tar"
    for repo in (REPO, PRIVATE):
        run_command("pull", repo, "--hub-url", place.hub_url, "--cache-dir", str(warm))
    run_command("cache", "export", str(archive), "--cache-dir", str(warm))
    place.origin.stop()
    run_command("cache", "import", "--with-answers", str(archive), "--cache-dir", str(there))
    assert TOKEN.encode() not in archive.read_bytes()
    server = place.start_server(there, offline=True)
    for repo in (REPO, PRIVATE):
        download_all(server, tmp_path / repo, repo)
        assert read_tree(tmp_path / repo / "out") == place.files
    for token, advice in ((OTHER_TOKEN, "pull it with this one"), (None, "send that token")):
        public = ask(server, f"/{REPO}/resolve/main/{XET_FILE}", token=token)
        assert (public.status, public.body) == (200, place.files[XET_FILE])
        private = ask(server, f"/{PRIVATE}/resolve/main/{XET_FILE}", token=token)
        assert private.status == 504
        assert "It has this, but" in (error := json.loads(private.body)["error"])
        assert advice in error
        absent = ask(server, f"/{PRIVATE}/resolve/main/absent", token=token)
        assert "has no stored answer" in json.loads(absent.body)["error"]


def test_the_start_shows_a_wrong_hub_url(place: Place, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    run_command("pull", REPO, "--hub-url", place.hub_url, "--cache-dir", str(cache))
    url = place.hub_url
    server = place.start_server(cache, offline=True)
    wait_until(lambda: re.search(rf"INFO .* has \d+ answers of hub_url, {url}\n", server.log))
    place.port = 1
    for offline, level in ((True, "WARNING"), (False, "INFO")):
        server = place.start_server(cache, offline=offline)
        line = (
            rf"{level} .* has no answers of hub_url, http://127.0.0.1:1, \d+ of {url}: is hub_url"
        )
        wait_until(lambda: re.search(line, server.log))  # noqa: B023 - waits here


def test_carried_answers_permit_nothing_online(place: Place, tmp_path: Path) -> None:
    """The Hub there knows nothing of the token that the archive says may read; and without the
    answers nothing is said.
    """
    warm, archive = tmp_path / "warm", tmp_path / "carried.tar"
    run_command("pull", PRIVATE, "--hub-url", place.hub_url, "--cache-dir", str(warm))
    run_command("cache", "export", str(archive), "--cache-dir", str(warm))
    commit = json.loads(ask(place.start_server(warm), f"/api/models/{PRIVATE}").body)["sha"]
    place.origin.stop()
    for name, flags in (("with", ["--with-answers"]), ("without", [])):
        there = str(tmp_path / name)
        run_command("cache", "import", *flags, str(archive), "--cache-dir", there)
    paths = [f"/{PRIVATE}/resolve/{revision}/{path}" for revision in ("main", commit)
             for path in (XET_FILE, PLAIN_FILE)] + [f"/api/models/{PRIVATE}"]  # fmt: skip
    server = place.start_server(tmp_path / "without", offline=True)
    assert {ask(server, path).status for path in paths} == {504}
    place.origin = start_origin(
        place.launcher, place.base / "origin", port=place.port, users=(f"{OTHER_TOKEN}=x",)
    )
    server = place.start_server(tmp_path / "with", *STALE)
    assert {ask(server, path).status for path in paths} == {401}
    # What the Hub has said here counts, when nobody can be asked, too.
    server.stop()
    server = place.start_server(tmp_path / "with", offline=True)
    assert {ask(server, path).status for path in paths} == {504}


def test_a_hub_that_is_gone_is_an_error_if_the_operator_says_so(
    place: Place, tmp_path: Path
) -> None:
    flags = ("--metadata-ttl", "0", "--stale-for", "0")
    server = place.start_server(tmp_path / "cache", *flags)
    paths = [f"/{REPO}/resolve/main/{XET_FILE}", f"/download/{REPO}/{PLAIN_FILE}",
             f"/api/models/{REPO}/tree/main"]  # fmt: skip
    for path in paths:
        assert ask(server, path).status == 200
    place.origin.stop()
    for path in paths:
        assert ask(server, path).status in (502, 504)


STRANGERS = {"another token": OTHER_TOKEN, "no token": None, "a wrong token": "hf_" + "w" * 34}


@pytest.mark.parametrize("state", ["online", "stale", "offline"])
def test_a_private_repository_is_for_its_owner(place: Place, tmp_path: Path, state: str) -> None:
    cache = tmp_path / "cache"
    server = place.start_server(cache, *STALE)
    download_all(server, tmp_path / "warm", PRIVATE)
    file_hash = find_hash(place, PRIVATE)
    by_hash = f"/download-hash/{file_hash}?repo={PRIVATE}"
    assert ask(server, by_hash).body == place.files[XET_FILE]
    wait_for_disk(cache)
    if state == "offline":
        server.stop()
        server = place.start_server(cache, offline=True)
    elif state == "stale":
        place.origin.stop()
    expected = {401, 403, 404} if state == "online" else {502, 504}
    for stranger in STRANGERS.values():
        for path in (
            f"/{PRIVATE}/resolve/main/{XET_FILE}",
            f"/{PRIVATE}/resolve/main/{PLAIN_FILE}",
            f"/api/models/{PRIVATE}",
            f"/api/models/{PRIVATE}/revision/main",
            f"/api/models/{PRIVATE}/tree/main?recursive=True",
            by_hash,
        ):
            reply = ask(server, path, token=stranger)
            allowed = expected | ({401} if "hash" in path else set())
            assert reply.status in allowed, (path, reply)
    download_all(server, tmp_path / "owner", PRIVATE)
    assert read_tree(tmp_path / "owner" / "out") == place.files
    assert ask(server, by_hash).body == place.files[XET_FILE]
    names = [path.as_posix() for path in (cache / "meta").rglob("*")]
    assert names
    assert not [name for name in names if TOKEN in name or "weights" in name]
    stored = b"".join(path.read_bytes() for path in (cache / "meta").rglob("*") if path.is_file())
    assert TOKEN.encode() not in stored
    assert b"X-Xet-Signature" not in stored
    assert b"/data/" not in stored


def find_hash(place: Place, repo: str) -> str:
    with closing(Connection(place.hub_url)) as connection:
        tree = json.loads(connection.ask(f"/api/models/{repo}/tree/main").body)
    return str(next(item["xetHash"] for item in tree if item["path"] == XET_FILE))


def test_what_is_public_stands_in_offline(place: Place, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    server = place.start_server(cache)
    download_all(server, tmp_path / "warm", token=None, HF_HUB_DISABLE_IMPLICIT_TOKEN="1")
    wait_for_disk(cache)
    server.stop()
    server = place.start_server(cache, offline=True)
    download_all(server, tmp_path / "out", token=OTHER_TOKEN)
    assert read_tree(tmp_path / "out" / "out") == place.files


def test_what_clients_ask_offline_after_a_pull(place: Place, tmp_path: Path) -> None:
    """The repository without a revision, its commit, and a file by nothing but its hash."""
    cache, there = tmp_path / "cache", tmp_path / "there"
    run_command("pull", PRIVATE, "--hub-url", place.hub_url, "--cache-dir", str(cache))
    archive = str(tmp_path / "carried.tar")
    run_command("cache", "export", "--repo", PRIVATE, archive, "--cache-dir", str(cache))
    run_command("cache", "import", "--with-answers", archive, "--cache-dir", str(there))
    by_hash = f"/download-hash/{find_hash(place, PRIVATE)}"
    place.origin.stop()
    for folder in (cache, there):
        server = place.start_server(folder, offline=True)
        info = ask(server, f"/api/models/{PRIVATE}")
        assert (info.status, json.loads(info.body)["id"]) == (200, PRIVATE)
        commit = json.loads(info.body)["sha"]
        assert ask(server, f"/api/models/{PRIVATE}/revision/{commit}").status == 200
        for query in ("", f"?repo={PRIVATE}", f"?repo={REPO}"):
            assert ask(server, by_hash + query).body == place.files[XET_FILE]
            part = ask(server, by_hash + query, ("Range", "bytes=1000-1999"))
            assert (part.status, part.body) == (206, place.files[XET_FILE][1000:2000])
        for stranger in STRANGERS.values():
            reply = ask(server, by_hash, token=stranger)
            assert reply.status == (401 if stranger is None else 504)
            assert stranger is None or b"this token has not asked for it" in reply.body
        server.stop()


def test_a_hundred_questions_are_one(place: Place, tmp_path: Path) -> None:
    server = place.start_server(tmp_path / "cache")
    place.control.reset_requests()
    urls = [f"{server.url}/{REPO}/resolve/main/{XET_FILE}"] * 100
    options = ["-I", "--parallel", "--parallel-max", "50"]
    command = curl(urls[0], tmp_path / "head", *options)
    for number, url in enumerate(urls[1:]):
        command += ["-o", str(tmp_path / f"head{number}"), url]
    assert run(command).returncode == 0
    asked = [request["method"] for request in place.control.requests()]
    assert asked == ["HEAD"]
    # By its commit, it is not asked about again for another file of the same commit but for the
    # permission.
    heads = [path.read_text() for path in tmp_path.glob("head*")]
    assert len(heads) == 100
    assert all("200 OK" in head for head in heads)


def test_access_that_is_taken_back_is_noticed(place: Place, tmp_path: Path) -> None:
    server = place.start_server(tmp_path / "cache", "--metadata-ttl", "0.5", *STALE)
    paths = [f"/{PRIVATE}/resolve/main/{XET_FILE}", f"/api/models/{PRIVATE}/tree/main",
             f"/download-hash/{find_hash(place, PRIVATE)}?repo={PRIVATE}"]  # fmt: skip
    for path in paths:
        assert ask(server, path).status == 200
    place.origin.stop()
    place.origin = start_origin(
        place.launcher, place.base / "origin", port=place.port, users=(f"{OTHER_TOKEN}=x",)
    )
    for path in paths:
        wait_until(lambda path=path: ask(server, path).status != 200)  # type: ignore[misc]
        assert ask(server, path).status == 401
    # Nor does it come back when nobody can be asked, by whichever way it was known.
    place.origin.stop()
    for path in [*paths, f"/{PRIVATE}/resolve/main/{XET_FILE}?download=1"]:
        assert ask(server, path).status in (401, 502, 504)


def test_large_files_offline(uploaded: Uploaded, launcher: Launcher, tmp_path: Path) -> None:
    """Files of many windows, that share chunks with others and with themselves, however they were
    warmed.
    """
    shutil.copytree(uploaded.origin_folder, tmp_path / "origin")
    origin = start_origin(launcher, tmp_path / "origin")
    flags = ("--cache-dir", str(tmp_path / "cache"), "--cache-min-free", "0")
    server = launcher.start(*serve_arguments(origin.url, *flags, "--metadata-ttl", "30"))

    def download(path: str, *options: str) -> Path:
        target = tmp_path / "got"
        url = f"{server.url}/download/{SHARED_REPO}/{quote(path)}"
        done = run(curl(url, target, *options))
        assert done.returncode == 0, (path, done.stderr)
        return target

    for path in uploaded.digests:
        options = ["--limit-rate", "30M"] if path == "big.bin" else []
        download(path, *options)
    wait_for_disk(tmp_path / "cache")
    server.stop()
    origin.stop()
    server = launcher.start(*serve_arguments(origin.url, *flags), XETSERVE_OFFLINE="1")
    source = random.Random(9)
    for path, digest in uploaded.digests.items():
        assert sha256_of(download(path)) == digest
        content = (uploaded.folder / path).read_bytes()
        for _ in range(5):
            if len(content) > 1:
                start, end = sorted(source.sample(range(len(content)), 2))
                got = download(path, "-r", f"{start}-{end}").read_bytes()
                assert got == content[start : end + 1]
    assert "Traceback" not in server.log
