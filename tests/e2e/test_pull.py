"""`xetserve pull` against a real origin: afterwards the data plane is not needed any more."""

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Launcher, clean_environment
from tests.e2e.cached_site import check_without_data, start_server
from tests.e2e.commands import TIMEOUT, pull, pull_command, summary_of
from tests.e2e.conftest import REPO, TOKEN, Site
from tests.e2e.damage import find_record
from tests.waiting import wait_until
from xetserve.xet.compression import Scheme


def data_requests(site: Site) -> list[dict[str, Any]]:
    return [asked for asked in site.control.requests() if asked["kind"] == "data"]


def test_the_names_of_the_server_are_for_its_clients(site: Site, tmp_path: Path) -> None:
    config = tmp_path / "xetserve.toml"
    config.write_text('[http]\nhosts = "models.test"\n')
    flags = ("--config", str(config), "--include", "config.json")
    done = pull(site, tmp_path / "cache", "--json", *flags)
    assert summary_of(done)["failed"] == []


def test_a_whole_repository(site: Site, launcher: Launcher, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    summary = summary_of(pull(site, folder, "--json"))
    sizes = [(site.uploaded.folder / name).stat().st_size for name in site.uploaded.digests]
    # The Hub adds a file of its own.
    assert summary["files"] >= len(sizes)
    assert summary["bytes"] >= sum(sizes)
    assert summary["failed"] == []
    assert summary["upstream_bytes"] > 0
    assert re.fullmatch("[0-9a-f]{40}", summary["commit"])
    assert {asked["authorization"] for asked in data_requests(site)} == {None}
    check_without_data(
        start_server(site, launcher, folder),
        tmp_path,
        [n for n, d in site.uploaded.digests.items() if d],
    )
    site.control.set_faults()
    site.control.reset_requests()
    again = summary_of(pull(site, folder, "--json"))
    assert again["upstream_bytes"] == 0
    assert data_requests(site) == []


def test_what_was_stopped_goes_on(site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    site.control.set_faults(bandwidth=10_000_000)
    only = ("--include", "big.bin")
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        before = set(folder.glob("??/*/*.xc"))
        process = subprocess.Popen(
            pull_command(site, folder, *only),
            env=clean_environment(HF_TOKEN=TOKEN),
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_until(lambda: bool(set(folder.glob("??/*/*.xc")) - before))  # noqa: B023 - waits here
        process.send_signal(number)
        _, errors = process.communicate(timeout=TIMEOUT)
        assert process.returncode == status
        assert "Traceback" not in errors
    site.control.set_faults()
    summary = summary_of(pull(site, folder, *only, "--json"))
    assert summary["cache_bytes"] > 0
    assert summary["failed"] == []
    assert not list((folder / "tmp").iterdir())


def test_patterns_choose(site: Site, launcher: Launcher, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    chosen = ("--include", "odd/*", "--include", "*.json", "--exclude", "*größe*")
    done = pull(site, folder, *chosen)
    assert done.returncode == 0
    lines = [line.rsplit(" ", 2)[0] for line in done.stderr.splitlines()]
    assert sorted(lines) == ["config.json", "odd/100% + more.bin", "odd/name with spaces.bin"]
    assert f"{REPO}@" in done.stdout
    assert "3 files, " in done.stdout
    check_without_data(start_server(site, launcher, folder), tmp_path, lines)


def test_beside_a_server_that_runs(site: Site, launcher: Launcher, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    served = start_server(site, launcher, folder)
    summary_of(pull(site, folder, "--json", "--include", "r*.bin"))
    check_without_data(served, tmp_path, ["random.bin", "repeats.bin"])


def test_a_revision_by_its_commit(site: Site, tmp_path: Path) -> None:
    only = ("--json", "--include", "random.bin")
    commit = summary_of(pull(site, tmp_path / "a", *only))["commit"]
    summary = summary_of(pull(site, tmp_path / "b", *only, repo=f"{REPO}@{commit}"))
    assert (summary["commit"], summary["files"]) == (commit, 1)


def test_a_token_from_a_file_is_nowhere_else(site: Site, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    only = ("--include", "random.bin", "--log-level", "debug")
    done = pull(site, tmp_path / "cache", *only, "--token-file", str(tmp_path / "token"), token="")
    assert done.returncode == 0
    assert TOKEN not in done.stderr + done.stdout
    for path in (tmp_path / "cache").rglob("*"):
        assert path.is_dir() or TOKEN.encode() not in path.read_bytes()


def test_what_fails_is_named(site: Site, tmp_path: Path) -> None:
    # Nothing that does not fit can be kept, and what was read first must not seem to be there.
    flags = ("--cache-size", "1000", "--include", "r*.bin", "--force")
    done = pull(site, tmp_path / "small", "--json", *flags)
    failed = {one["path"]: one["error"] for one in summary_of(done, 1)["failed"]}
    assert set(failed) == {"random.bin", "repeats.bin"}
    assert "check the free space" in failed["random.bin"]
    assert "random.bin: " in done.stderr


def test_what_is_public_is_pulled_without_the_token(site: Site, tmp_path: Path) -> None:
    site.control.reset_requests()
    done = pull(site, tmp_path / "cache", "--include", "config.json")
    assert "It is public: pulled without the token" in done.stdout
    asked = site.control.requests()
    files = [one for one in asked if one["method"] == "GET" and "/resolve/" in one["path"]]
    assert {one["authorization"] for one in files} == {None}


@pytest.mark.parametrize(
    ("flag", "value", "advice"),
    [("--cache-size", "3MiB", "Raise cache_size"), ("--cache-min-free", "1000TB", "make room")],
)
def test_what_cannot_fit_is_refused_before_anything_is_fetched(
    site: Site, tmp_path: Path, flag: str, value: str, advice: str
) -> None:
    site.control.reset_requests()
    done = pull(site, tmp_path / "small", flag, value, "--include", "r*.bin")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.search(r" MB do not fit into the cache, .* [0-9.]+ MB are missing", done.stderr)
    assert advice.lower() in done.stderr.lower()
    assert data_requests(site) == []


def test_what_takes_less_room_than_listed_is_pulled_by_force_and_known_then(
    site: Site, tmp_path: Path
) -> None:
    size = (site.uploaded.folder / "repeats.bin").stat().st_size
    only = ("--json", "--include", "repeats.bin", "--cache-size", str(size - 1000))
    assert pull(site, tmp_path / "cache", *only).returncode == 1
    assert summary_of(pull(site, tmp_path / "cache", *only, "--force"))["files"] == 1
    again = summary_of(pull(site, tmp_path / "cache", *only))
    assert (again["files"], again["upstream_bytes"]) == (1, 0)


def test_what_has_no_room_is_fetched_once_and_not_named_as_here(site: Site, tmp_path: Path) -> None:
    site.control.set_faults()
    site.control.reset_requests()
    flags = ("--json", "--include", "r*.bin", "--force", "--cache-min-free", "1000TB")
    summary = summary_of(pull(site, tmp_path / "full", *flags), 1)
    assert (summary["files"], summary["bytes"]) == (0, 0)
    assert {one["path"] for one in summary["failed"]} == {"random.bin", "repeats.bin"}
    fetched = [(asked["path"], asked["range"]) for asked in data_requests(site)]
    assert len(fetched) == len(set(fetched))


def test_files_that_are_not_xet_count_as_fetched(site: Site, tmp_path: Path) -> None:
    only = ("--json", "--include", "config.json")
    summary = summary_of(pull(site, tmp_path / "cache", *only))
    assert summary["upstream_bytes"] == summary["bytes"] > 0
    summary = summary_of(pull(site, tmp_path / "cache", *only))
    assert (summary["upstream_bytes"], summary["cache_bytes"]) == (0, summary["bytes"])


def test_damage_is_named_and_the_rest_is_pulled(
    site: Site, launcher: Launcher, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    xorb, chunk, _, _ = find_record(site, Scheme.NONE, "damage/raw.bin")
    site.control.set_faults(swap_chunk={"xorb": xorb, "chunk": chunk})
    only = ("--json", "--include", "damage/*", "--upstream-timeout", "1")
    summary = summary_of(pull(site, folder, *only), 1)
    assert [one["path"] for one in summary["failed"]] == ["damage/raw.bin"]
    assert "the chunks make file" in summary["failed"][0]["error"]
    site.control.set_faults()
    assert summary_of(pull(site, folder, *only))["files"] == 3
    check_without_data(start_server(site, launcher, folder), tmp_path, ["damage/raw.bin"])


@pytest.mark.parametrize(
    ("repo", "token", "message"),
    [
        ("tester/absent", TOKEN, "404"),
        (f"{REPO}@absent", TOKEN, "404"),
        (REPO, "hf_" + "x" * 34, "is the token (HF_TOKEN, --token-file) one of http://"),
    ],
)
def test_what_cannot_be_listed(
    site: Site, tmp_path: Path, repo: str, token: str, message: str
) -> None:
    done = pull(site, tmp_path / "cache", repo=repo, token=token)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert token not in done.stderr


def test_without_a_token_the_message_says_how_to_give_one(site: Site, tmp_path: Path) -> None:
    done = pull(site, tmp_path / "cache", repo="tester/absent", token="")
    assert done.returncode == 1
    assert (
        "check the name, or give a token that may read it (HF_TOKEN, --token-file)" in done.stderr
    )


def test_a_token_as_argument_is_not_taken_for_the_name_of_a_file(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "xetserve", "pull", "a/b", "--token", TOKEN],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 2
    assert "unknown flag --token; did you mean '--token-file'?" in done.stderr
    assert TOKEN not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["a/b/c", "--cache-dir", "cache"],
        ["a/b@x..y", "--cache-dir", "cache"],
        ["a/b"],
        ["a/b", "--cache-dir", "cache", "--type", "cake"],
        ["a/b", "--cache-dir", "cache", "--jobs", "0"],
        ["a/b", "--cache-dir", "cache", "--token-file", "/absent"],
        ["--cache-dir", "cache"],
    ],
)
def test_usage(tmp_path: Path, arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "xetserve", "pull", *arguments],
        env={**clean_environment(), "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 2
    assert "xetserve" in done.stderr
    assert "Traceback" not in done.stderr
