"""What the official client uploaded comes out byte for byte, through the clients people use."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import Process, need_program, sha256_of
from tests.e2e.clients import CLIENTS, aria2, curl, file_url, head, run
from tests.e2e.conftest import REPO, TOKEN, VARIANT, Site
from tests.e2e.dataset import MIB
from tests.e2e.workers import check_server
from xetserve.app.status.usage import make_usage_text
from xetserve.commands.arguments import DESCRIPTION

ROOT = Path(__file__).parents[2]
FILES = [
    "model/tensors f32.safetensors",
    "model/tensors-bf16.safetensors",
    "random.bin",
    "text/corpus.bin",
    "repeats.bin",
    "big.bin",
    "big-edited.bin",
    "empty.bin",
    "one-byte.bin",
    "five-kilobytes.bin",
    "odd/name with spaces.bin",
    "odd/100% + more.bin",
    "odd/größe-大きさ.bin",
    "a/b/c/d/e/deep.bin",
    "damage/raw.bin",
    "damage/lz4.bin",
    "damage/bg4.bin",
    "config.json",
]
SERVERS = ["several workers"] if "workers" in VARIANT else ["one process", "several workers"]


@pytest.fixture(params=SERVERS)
def any_site(request: pytest.FixtureRequest, site: Site) -> Iterator[Site]:
    """The site with one process, then with several workers."""
    if "workers" in VARIANT or request.param == "one process":
        yield site
        return
    server: Process = request.getfixturevalue("server_with_workers")
    yield replace(site, server=server)
    check_server(server)


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("name", FILES)
def test_a_file_comes_out_as_it_went_in(
    any_site: Site, tmp_path: Path, client: str, name: str
) -> None:
    target = tmp_path / "out"
    done = run(CLIENTS[client](file_url(any_site, name), target))
    assert done.returncode == 0, done.stderr
    assert sha256_of(target) == any_site.uploaded.digests[name]


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("name", [name for name in FILES if "config" not in name])
def test_a_file_comes_out_by_its_hash(site: Site, tmp_path: Path, client: str, name: str) -> None:
    file_hash = head(site, file_url(site, name)).get("x-xet-hash")
    if name == "empty.bin":
        # The official client never makes an empty file a Xet file; its hash is defined all the
        # same.
        assert file_hash is None
        pytest_hash = "0" * 64
        answer = run(curl(f"{site.server.url}/download-hash/{pytest_hash}", tmp_path / "out"))
        assert answer.returncode == 22  # the CAS does not know it: 404
        return
    assert file_hash is not None
    target = tmp_path / "out"
    done = run(CLIENTS[client](f"{site.server.url}/download-hash/{file_hash}?repo={REPO}", target))
    assert done.returncode == 0, done.stderr
    assert sha256_of(target) == site.uploaded.digests[name]


def test_the_dataset_makes_the_origin_use_what_it_should(site: Site) -> None:
    """The uploads are only worth something if they hold every scheme and files over several
    xorbs.
    """
    schemes = set()
    xorbs = list((site.uploaded.origin_folder / "xorbs").iterdir())
    for path in xorbs:
        if len(path.name) != 64:
            continue
        data = path.read_bytes()
        at = 0
        while at < len(data):
            schemes.add(data[at + 4])
            at += 8 + int.from_bytes(data[at + 1 : at + 4], "little")
    assert schemes == {0, 1, 2}
    assert (site.uploaded.folder / "big.bin").stat().st_size > 64 * MIB


@pytest.mark.parametrize("name", ["big.bin", "config.json"])
@pytest.mark.parametrize(
    ("first", "last"), [(0, 0), (0, 9), (5, 21), (10, None)], ids=["1", "10", "inner", "open"]
)
def test_a_range_is_exactly_that(
    site: Site, tmp_path: Path, name: str, first: int, last: int | None
) -> None:
    target = tmp_path / "out"
    wanted = f"{first}-{'' if last is None else last}"
    done = run(curl(file_url(site, name), target, "-r", wanted, "-w", "%{http_code}"))
    assert (done.returncode, done.stdout) == (0, "206")
    content = (site.uploaded.folder / name).read_bytes()
    assert target.read_bytes() == content[first : None if last is None else last + 1]


def test_a_broken_off_download_is_resumed(any_site: Site, tmp_path: Path) -> None:
    target = tmp_path / "out"
    content = (any_site.uploaded.folder / "big.bin").read_bytes()
    target.write_bytes(content[:33_333_333])
    done = run(curl(file_url(any_site, "big.bin"), target, "-C", "-"))
    assert done.returncode == 0, done.stderr
    assert sha256_of(target) == any_site.uploaded.digests["big.bin"]


def test_headers_describe_the_file(site: Site) -> None:
    name = "odd/größe-大きさ.bin"
    headers = head(site, file_url(site, name))
    assert headers["etag"] == f'"{site.uploaded.digests[name]}"'
    assert headers["content-length"] == headers["x-linked-size"] == "200003"
    assert (
        "filename*=UTF-8''gr%C3%B6%C3%9Fe-%E5%A4%A7%E3%81%8D%E3%81%95.bin"
        in (headers["content-disposition"])
    )
    assert len(headers["x-repo-commit"]) == 40
    assert headers["accept-ranges"] == "bytes"
    plain = head(site, file_url(site, "config.json"))
    assert plain["content-type"] == "application/json"
    assert "x-xet-hash" not in plain


def test_a_whole_file_is_chunked_and_an_old_client_gets_a_length(
    site: Site, tmp_path: Path
) -> None:
    dump = tmp_path / "headers"
    url = file_url(site, "five-kilobytes.bin")
    run(curl(url, tmp_path / "out", "-D", str(dump)))
    assert "Transfer-Encoding: chunked" in dump.read_text()
    run(curl(url, tmp_path / "out", "-D", str(dump), "--http1.0"))
    assert "Content-Length: 5120" in dump.read_text()
    assert sha256_of(tmp_path / "out") == site.uploaded.digests["five-kilobytes.bin"]


def test_a_length_on_request(site: Site, tmp_path: Path) -> None:
    dump = tmp_path / "headers"
    name = "big.bin"
    size = head(site, file_url(site, name))["x-linked-size"]
    file_hash = head(site, file_url(site, name))["x-xet-hash"]
    by_hash = f"{site.server.url}/download-hash/{file_hash}?length=1"
    for url in (f"{file_url(site, name)}?length=1", by_hash):
        done = run(curl(url, tmp_path / "out", "-D", str(dump), "--compressed"))
        assert done.returncode == 0, done.stderr
        fields = dump.read_text().lower()
        assert f"content-length: {size}" in fields.splitlines()
        assert "transfer-encoding:" not in fields
        assert "\ncontent-encoding:" not in fields
        assert sha256_of(tmp_path / "out") == site.uploaded.digests[name]


def test_aria2_splits_a_file_with_a_length(site: Site, tmp_path: Path) -> None:
    url = f"{file_url(site, 'big.bin')}?length=1"
    done = run(aria2(url, tmp_path / "out", "-x4", "-s4", "-k1M", "--log-level=debug", "-l-"))
    assert done.returncode == 0, done.stderr
    assert sha256_of(tmp_path / "out") == site.uploaded.digests["big.bin"]
    assert done.stdout.count("Range: bytes=") >= 2


def test_aria2_completes_what_another_client_has_begun(site: Site, tmp_path: Path) -> None:
    """Without a length, aria2 would take the beginning for all of the file, and end with 0."""
    content = (site.uploaded.folder / "big.bin").read_bytes()
    target = tmp_path / "out"
    target.write_bytes(content[: 3 * MIB])
    done = run(aria2(file_url(site, "big.bin"), target, "-c", "--allow-overwrite=false"))
    assert done.returncode == 0, done.stderr
    assert target.read_bytes() == content


def test_an_old_client_gets_a_file_by_hash_too(site: Site, tmp_path: Path) -> None:
    name = "repeats.bin"
    file_hash = head(site, file_url(site, name))["x-xet-hash"]
    url = f"{site.server.url}/download-hash/{file_hash}"  # the default repository is ours here
    done = run(curl(url, tmp_path / "out", "--http1.0"))
    assert done.returncode == 0, done.stderr
    assert sha256_of(tmp_path / "out") == site.uploaded.digests[name]


def test_many_requests_share_a_connection(any_site: Site, tmp_path: Path) -> None:
    urls = [file_url(any_site, name) for name in ("one-byte.bin", "config.json", "random.bin")]
    more = [part for url in urls[1:] for part in ("-o", str(tmp_path / "more"), url)]
    done = run(curl(urls[0], tmp_path / "out", *more, "-w", "%{num_connects} "))
    assert (done.returncode, done.stdout.split()) == (0, ["1", "0", "0"])


@pytest.mark.parametrize(
    ("path", "status"),
    [
        pytest.param("/health", 200, id="health"),
        pytest.param("/", 200, id="usage page"),
        pytest.param("/nothing", 404, id="unknown path"),
        pytest.param(f"/download/{REPO}/absent.bin", 404, id="absent file"),
        pytest.param("/download/tester/absent/x", 404, id="absent repository"),
        pytest.param(f"/download/{REPO}/random.bin?revision=absent", 404, id="absent revision"),
        pytest.param(f"/download/{REPO}/random.bin?type=model", 200, id="type model"),
        pytest.param(f"/download/{REPO}/random.bin?type=dataset", 404, id="wrong type"),
        pytest.param(f"/download/{REPO}/random.bin?type=zebra", 400, id="unknown type"),
        pytest.param("/download-hash/xyz", 400, id="bad hash"),
        pytest.param("/download-hash/" + "ab" * 32, 404, id="unknown hash"),
        pytest.param(f"/download/{REPO}/a%2Fb/c.bin", 400, id="encoded slash"),
        pytest.param(f"/download/{REPO}/%2e%2e/c.bin", 400, id="dot segment"),
        pytest.param(f"/download/{REPO}/%ff.bin", 400, id="not UTF-8"),
    ],
)
def test_statuses(any_site: Site, tmp_path: Path, path: str, status: int) -> None:
    target = tmp_path / "out"
    command = curl(any_site.server.url + path, target, "--path-as-is", "-w", "%{http_code}")
    command.remove("-f")
    assert run(command).stdout == str(status)
    if status >= 400:
        assert json.loads(target.read_text())["error"]


@pytest.mark.parametrize(
    "header",
    ["", "Authorization: Basic dXNlcg==", "Authorization: Bearer", "Authorization: Bearer a b"],
)
def test_a_token_is_asked_for(site: Site, tmp_path: Path, header: str) -> None:
    done = run(
        [
            *(need_program("curl"), "-q", "-sS", "-i", "-w", "%{http_code}", "-H", header),
            file_url(site, "random.bin"),
        ]
    )
    assert done.stdout.endswith("401")
    assert "WWW-Authenticate: Bearer" in done.stdout


def test_another_method_is_refused_with_what_is_allowed(site: Site) -> None:
    done = run(
        [need_program("curl"), "-q", "-sS", "-i", "-X", "DELETE", file_url(site, "random.bin")]
    )
    assert "405 " in done.stdout
    assert "Allow: GET, HEAD" in done.stdout


def test_a_token_that_the_hub_does_not_know_is_refused(site: Site, tmp_path: Path) -> None:
    command = curl(file_url(site, "random.bin"), tmp_path / "out", "-w", "%{http_code}")
    command = [part.replace(TOKEN, "hf_wrong") for part in command]
    assert run(command).stdout == "401"


def test_a_refusal_is_read_with_fail_with_body(site: Site, tmp_path: Path) -> None:
    command = curl(f"{site.server.url}/download/{REPO}/absent.bin", tmp_path / "out")
    command[command.index("-f")] = "--fail-with-body"
    done = run(command)
    assert done.returncode == 22
    assert json.loads((tmp_path / "out").read_text())["error"]


def test_examples_show_the_reason_and_resume_without_it() -> None:
    """A resumed file must not begin with an error document."""
    texts = [(ROOT / "README.md").read_text(), make_usage_text("http://host"), DESCRIPTION]
    commands = [each for text in texts for each in re.findall(r"^ *(curl .*)", text, re.MULTILINE)]
    assert len(commands) > 6
    for command in commands:
        assert ("--fail-with-body" in command) is not (" -f " in command), command
        assert " -f " in command or "-C" not in command
