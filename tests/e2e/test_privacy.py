"""Tokens: the client's is seen by the Hub only, the read token by the CAS only, and no log has
either.
"""

import re
from pathlib import Path

from tests.conftest import Launcher
from tests.e2e.clients import curl, file_url, head, run
from tests.e2e.conftest import REPO, TOKEN, Site, serve_arguments
from tests.e2e.hub import start_origin


def test_each_upstream_sees_its_own_token_only(site: Site, tmp_path: Path) -> None:
    for name in ("big-edited.bin", "config.json"):
        assert run(curl(file_url(site, name), tmp_path / "out", "-b", "secret=1")).returncode == 0
    seen = site.control.requests()
    kinds = {item["kind"] for item in seen}
    assert kinds >= {"hub", "cas", "data"}
    for item in seen:
        authorization = item["authorization"]
        if item["kind"] == "hub":
            assert authorization == f"Bearer {TOKEN}"
        elif item["kind"] == "cas":
            assert authorization
            assert TOKEN not in authorization
        else:
            assert authorization is None
        assert item["cookie"] is None
        assert re.fullmatch(r"xetserve/[\d.]+\S*", item["user_agent"])


def test_the_client_token_does_not_follow_a_redirect_to_another_host(
    site: Site, launcher: Launcher, tmp_path: Path
) -> None:
    """A Hub that redirects to a bridge on another port, as production does."""
    bridge = site.origin.url.replace("127.0.0.1", "localhost")
    origin = start_origin(launcher, site.uploaded.origin_folder, "--bridge-url", bridge)
    server = launcher.start(*serve_arguments(origin.url))
    url = f"{server.url}/download/{REPO}/random.bin"
    assert run(curl(url, tmp_path / "out")).returncode == 0
    assert (tmp_path / "out").read_bytes() == (site.uploaded.folder / "random.bin").read_bytes()
    assert [item for item in site.control.requests() if TOKEN in str(item["authorization"])] == []


def test_debug_logs_hold_no_token_and_no_signature(site: Site, tmp_path: Path) -> None:
    site.control.set_faults(data_403_first=2, cas_status_burst={"status": 500, "count": 1})
    run(curl(file_url(site, "big.bin"), tmp_path / "out"))
    run(curl(file_url(site, "absent.bin") + "?revision=x", tmp_path / "out"))
    file_hash = head(site, file_url(site, "random.bin"))["x-xet-hash"]
    run(curl(f"{site.server.url}/download-hash/{file_hash}?token={TOKEN}", tmp_path / "out"))
    log = site.server.log
    assert "big.bin" in log  # it does log
    assert TOKEN not in log
    assert not re.search(r"(?i)signature=|policy=|x-xet-signed-range=|bearer [^*]", log)
