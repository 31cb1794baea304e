"""`xetserve origin` as something to run: its settings, rights and pages, with real clients."""

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Launcher, clean_environment, need_program
from tests.e2e.conftest import serve_arguments
from tests.e2e.hub import OTHER_TOKEN, run_hf, run_script, start_origin, upload
from tests.waiting import PATIENCE, wait_until


def run_origin(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run an origin that is expected not to start."""
    done = subprocess.run(
        [sys.executable, "-m", "xetserve", "origin", *arguments],
        env=clean_environment(**environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder to import."""
    found = tmp_path / "data"
    found.mkdir()
    (found / "a.txt").write_text("hello")
    (found / "b.bin").write_bytes(bytes(range(256)) * 400)
    return found


# Settings


def test_a_file_is_all_that_it_needs(launcher: Launcher, tmp_path: Path, folder: Path) -> None:
    config = tmp_path / "origin.toml"
    imports = "\n".join(f"{prefix}team/it={folder}" for prefix in ("", "datasets/", "spaces/"))
    config.write_text(
        f'[origin]\ndir = "{tmp_path}/origin"\nimports = """\n{imports}\n"""\n'
        '[server]\nhost = "127.0.0.1"\nport = 0\n'
    )
    origin = launcher.start("origin", "--config", str(config))
    assert f"origin on {tmp_path}/origin" in origin.log
    printed = run_script(
        sys.executable,
        origin.url,
        tmp_path / "home",
        """
        api = HfApi()
        kinds = [api.list_models, api.list_datasets, api.list_spaces]
        found = [[each.id for each in kind()] for kind in kinds]
        sizes = {}
        for kind in ("model", "dataset", "space"):
            folder = snapshot_download("team/it", repo_type=kind)
            for name in api.list_repo_files("team/it", repo_type=kind):
                sizes[f"{kind}/{name}"] = len(open(f"{folder}/{name}", "rb").read())
        print(json.dumps([found, sizes, api.space_info("team/it").id]))
        """,
    )
    found, sizes, space = json.loads(printed)
    assert found == [["team/it"]] * 3
    assert sizes == {
        f"{kind}/{name}": size
        for kind in ("model", "dataset", "space")
        for name, size in (("a.txt", 5), ("b.bin", 102_400))
    }
    assert space == "team/it"


def test_it_needs_a_folder() -> None:
    done = run_origin("--port", "0")
    message = "an origin needs a folder: `xetserve origin DIR`, or dir in [origin]"
    assert (done.returncode, done.stderr) == (2, f"xetserve: {message}\n")


def test_a_folder_that_is_missing_is_named_with_its_setting(tmp_path: Path) -> None:
    imports = {"XETSERVE_ORIGIN_IMPORTS": "a/b=/nowhere"}
    done = run_origin(str(tmp_path / "o"), "--port", "0", **imports)
    message = "imports: a/b=/nowhere: /nowhere is not a folder"
    assert (done.returncode, done.stderr) == (2, f"xetserve: {message}\n")


def test_a_folder_is_imported_into_main(tmp_path: Path, folder: Path) -> None:
    done = run_origin(str(tmp_path / "o"), "--port", "0", "--import", f"a/b@next={folder}")
    assert done.returncode == 2
    assert "a folder is imported into main, not into next" in done.stderr


# The folder


def test_it_warns_of_another_origin_and_another_owner(launcher: Launcher, tmp_path: Path) -> None:
    state = tmp_path / "origin"
    first = launcher.start("origin", str(state), "--port", "0")
    assert "WARNING" not in first.log
    second = launcher.start("origin", str(state), "--port", "0")
    assert f"another origin uses {state}: if one of them changes a repository" in second.log
    first.stop()
    second.stop()
    if os.geteuid() == 0:
        os.chown(state, 1234, 1234)
    third = launcher.start("origin", str(state), "--port", "0")
    assert "another origin" not in third.log
    is_warned = f"{state} belongs to uid 1234, which cannot read the files" in third.log
    assert is_warned == (os.geteuid() == 0)


# The network

WARNING = "may read, change and delete everything: set tokens, or listen on 127.0.0.1"


@pytest.mark.parametrize(
    ("flags", "address", "is_warned"),
    [
        pytest.param((), "127.0.0.1", False, id="the default is this machine"),
        pytest.param(("--host", "0.0.0.0"), "0.0.0.0", True, id="open to the network"),
        pytest.param(("--host", "::"), "[::]", True, id="open to all"),
        pytest.param(("--host", "::1"), "[::1]", False, id="this machine by IPv6"),
        pytest.param(("--host", "0.0.0.0", "--token", "t=me"), "0.0.0.0", False, id="with tokens"),
    ],
)
def test_it_warns_when_the_network_may_change_everything(
    launcher: Launcher, tmp_path: Path, flags: tuple[str, ...], address: str, is_warned: bool
) -> None:
    origin = launcher.start("origin", str(tmp_path / "origin"), "--port", "0", *flags)
    assert f"listening on http://{address}:" in origin.log
    assert origin.log.count(WARNING) == is_warned


# Tokens and rights

WHOAMI = "print(json.dumps(HfApi().whoami()['name']))"
REFUSED = (
    "try:\n    HfApi().whoami()\nexcept HfHubHTTPError as exc:\n    print(exc.response.status_code)"
)


def test_tokens_of_a_file_are_read_again(launcher: Launcher, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("hf_first=ann\n")
    origin = launcher.start(
        *("origin", str(tmp_path / "origin"), "--port", "0", "--host", "0.0.0.0"),
        *("--tokens-file", str(tokens)),
        XETSERVE_ORIGIN_TOKENS="hf_other=bob",
    )
    url = origin.url.replace("0.0.0.0", "127.0.0.1")

    def ask(script: str, token: str) -> str:
        return run_script(sys.executable, url, tmp_path / "home", script, token=token)

    command_line = Path(f"/proc/{origin.pid}/cmdline").read_text()
    assert ask(WHOAMI, "hf_first") == '"ann"'
    assert ask(WHOAMI, "hf_other") == '"bob"'
    assert ask(REFUSED, "hf_second") == "401"
    assert "hf_" not in command_line

    tokens.write_text("")
    origin.popen.send_signal(signal.SIGHUP)
    wait_until(lambda: f"nothing reloaded: {tokens} is empty" in origin.log)
    tokens.write_text("hf_second=ann\n")
    origin.popen.send_signal(signal.SIGHUP)
    wait_until(lambda: "reloaded; changed: tokens" in origin.log)
    assert ask(WHOAMI, "hf_second") == '"ann"'
    assert ask(REFUSED, "hf_first") == "401"
    assert WARNING not in origin.log
    assert not re.search("hf_(first|second|other)", origin.log)


@pytest.mark.parametrize(
    ("kind", "is_served"),
    [
        pytest.param("model", False, id="a model"),
        pytest.param("dataset", True, id="a dataset through a server"),
    ],
)
def test_a_gated_repository(
    launcher: Launcher, tmp_path: Path, folder: Path, kind: str, is_served: bool
) -> None:
    origin = start_origin(launcher, tmp_path / "origin")
    endpoint = origin.url
    if is_served:
        endpoint = launcher.start(*serve_arguments(origin.url)).url
    home = tmp_path / "home"
    upload(sys.executable, origin.url, home, kind, "tester/gated", folder)
    gate = ("repos", "settings", "tester/gated", "--gated", "manual", "--type", kind)
    run_hf(origin.url, home, *gate)
    script = """
        from tempfile import mkdtemp
        kind, owner, other = sys.argv[1], HfApi(endpoint=sys.argv[2]), sys.argv[3]
        def download(name, **options):
            try:
                path = hf_hub_download("tester/gated", name, repo_type=kind, local_dir=mkdtemp(),
                                       **options)
                return len(open(path, "rb").read())
            except GatedRepoError as exc:
                return [type(exc).__name__, exc.response.status_code, exc.server_message]
        def download_all(**options):
            return [download(name, **options) for name in ("a.txt", "b.bin")]
        found = [download_all(), download_all(token=other), download_all(token=False)]
        owner.grant_access("tester/gated", "other", repo_type=kind)
        accepted = owner.list_accepted_access_requests("tester/gated", repo_type=kind)
        found += [[each.username for each in accepted], download_all(token=other)]
        owner.cancel_access_request("tester/gated", "other", repo_type=kind)
        info = HfApi(token=False).repo_info("tester/gated", repo_type=kind)
        print(json.dumps([*found, info.gated, len(info.siblings)]))
    """
    printed = run_script(
        *(sys.executable, endpoint, home, script),
        *(kind, origin.url, OTHER_TOKEN),
        TMPDIR=str(tmp_path),
    )
    mine, refused, anonymous, accepted, granted, gated, num_files = json.loads(printed)
    restricted = f"Access to {kind} tester/gated is restricted"
    not_listed = f"{restricted} and you are not in the authorized list. Ask its owner for access."
    assert mine == granted == [5, 102_400]
    assert refused == [["GatedRepoError", 403, not_listed]] * 2
    note = " (no token came with the request)" if is_served else ""
    assert anonymous == [["GatedRepoError", 401, f"{restricted}. Please log in.{note}"]] * 2
    assert (accepted, gated, num_files) == (["other"], "manual", 2)


# Pages


def test_an_upload_prints_the_url_of_a_page(
    launcher: Launcher, tmp_path: Path, folder: Path
) -> None:
    origin = start_origin(launcher, tmp_path / "origin")
    (folder / "page.html").write_text("<script>alert(1)</script>")
    printed = run_hf(origin.url, tmp_path / "home", "upload", "tester/it", str(folder))
    (url,) = re.findall(rf"{origin.url}/tester/it/commit/[0-9a-f]{{40}}", printed)

    def read(url: str) -> tuple[str, str]:
        done = subprocess.run(
            [need_program("curl"), "--fail-with-body", "--silent", "--include", url],
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        head, _, body = done.stdout.partition("\n\n")
        return head.lower(), body

    head, page = read(url)
    assert "content-type: text/html" in head
    assert "content-security-policy: default-src 'none'; style-src 'sha256-" in head
    for name in ("a.txt", "b.bin", "page.html"):
        assert f">{name}</a></td><td>added</td>" in page
    assert '<a href="/tester/it">tester/it</a>' in read(origin.url)[1]
    assert ">b.bin</a></td><td>102.4 kB</td>" in read(f"{origin.url}/tester/it")[1]
    # A browser that opens a file from here runs nothing.
    head, body = read(f"{origin.url}/tester/it/resolve/main/page.html")
    assert "content-security-policy: default-src 'none'; sandbox" in head
    assert body == "<script>alert(1)</script>"


# A service


def test_it_is_a_service_of_systemd(launcher: Launcher, tmp_path: Path, folder: Path) -> None:
    """As systemd/xetserve-origin.service starts it."""
    config = tmp_path / "origin.toml"
    config.write_text(f'[origin]\nimports = "ann/it={folder}"\n[server]\nport = 0\n')
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "xetserve.tokens").write_text("hf_ann=ann\n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENCE)

        def read(beginning: str) -> None:
            while not manager.recv(4096).decode().startswith(beginning):
                pass

        origin = launcher.start(
            *("origin", "--config", str(config)),
            XETSERVE_ORIGIN_DIR=str(tmp_path / "state"),
            CREDENTIALS_DIRECTORY=str(credentials),
            NOTIFY_SOCKET=str(tmp_path / "notify"),
            WATCHDOG_USEC="1000000",
        )
        read("READY=1")
        read("WATCHDOG=1")
        home = tmp_path / "home"
        assert run_script(sys.executable, origin.url, home, WHOAMI, token="hf_ann") == '"ann"'
        upload_text = "upload_file(path_or_fileobj=b'x', path_in_repo='x.txt', repo_id='ann/it')"
        run_script(sys.executable, origin.url, home, upload_text, token="hf_ann")
        origin.popen.send_signal(signal.SIGHUP)
        read("RELOADING=1")
        read("READY=1")
        origin.popen.send_signal(signal.SIGTERM)
        read("STOPPING=1")
        assert origin.popen.wait(timeout=PATIENCE) == 0
    assert stat.S_IMODE((tmp_path / "state" / "repos").stat().st_mode) == 0o700
