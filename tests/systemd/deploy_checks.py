"""The checks of `boot.py --deploy`, run as root inside the booted system: from nothing to a
service, upgraded, broken, removed.

/wheels has the project as it is, as an upgrade, and as one whose server does not start.
"""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import checks  # type: ignore[import-not-found]

TOOL = "/root/tool/bin/xetserve"
CONFIG = Path("/etc/xetserve/xetserve.toml")
SERVICE = "xetserve.service"
# What the machine writes for reasons of its own.
OTHERS = (
    "/proc",
    "/sys",
    "/dev",
    "/run",
    "/tmp",
    "/var/tmp",
    "/var/log",
    "/root",
    "/srv",
    "/checks",
)
BACKUPS = ("/etc/group-", "/etc/gshadow-", "/etc/.pwd.lock", "/etc/ld.so.cache")
before: set[str] = set()


def find_files() -> set[str]:
    """Give all there is."""
    found = set()
    for folder, folders, files in os.walk("/"):
        folders[:] = [name for name in folders if not os.path.join(folder, name).startswith(OTHERS)]
        found |= {os.path.join(folder, name) for name in (*folders, *files)}
    return {name for name in found if not name.startswith(BACKUPS)}


def wheel(version: str) -> str:
    (path,) = Path("/wheels").glob(f"xetserve-{version}-*.whl")
    return str(path)


def deploy(*arguments: str, status: int = 0) -> str:
    """Run the command; gives what it says."""
    done = subprocess.run(
        [TOOL, "deploy", *arguments],
        env={**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == status, said
    assert "Traceback" not in said, said
    return said


def running_version() -> str:
    return str(json.loads(checks.get("/health"))["version"])


@contextmanager
def load() -> Iterator[checks.Load]:
    """Clients that ask all the time, of whom none may be lost."""
    running = checks.Load()
    try:
        running.go_on()
        yield running
        running.go_on()
    finally:
        running.stop()
    assert not running.failures, running.failures[:5]


def prepare() -> str:
    """the tool, and an origin with files"""
    pip = ("/root/tool/bin/pip", "install", "--quiet", "--no-index", "--find-links=/wheels")
    checks.sh("python3", "-m", "venv", "/root/tool")
    checks.sh(*pip, wheel(FIRST))
    folder = Path("/srv/files")
    folder.mkdir(parents=True)
    for name, size in (("small.txt", 5000), ("big.bin", 48 * checks.MIB)):
        content = random.Random(size).randbytes(size)
        (folder / name).write_bytes(content)
        checks.digests[name] = hashlib.sha256(content).hexdigest()
    unit = f"""[Service]
ExecStart={TOOL} origin /srv/origin --host 127.0.0.1 --port 9090 \
--import {checks.REPO}={folder} --token {checks.TOKEN}=tester
Type=notify
"""
    Path("/run/systemd/system/origin.service").write_text(unit)
    checks.sh("systemctl", "daemon-reload")
    checks.sh("systemctl", "start", "origin.service")
    before.update(find_files())
    return f"{len(before)} files"


def plan() -> str:
    """plan says what apply does, and touches nothing"""
    said = deploy("plan", "--from", wheel(FIRST))
    assert find_files() == before
    assert "write /etc/xetserve/xetserve.toml (0640, root:xetserve-conf" in said
    return f"{len(said.splitlines())} lines"


def broken_first() -> str:
    """a first version that does not start leaves nothing"""
    said = deploy("apply", "--from", wheel(BROKEN), "--timeout", "15", status=1)
    assert "rolled back to the state without xetserve" in said, said
    # Made by systemd for any service with a dynamic user.
    left = find_files() - before - {"/var/cache/private", "/var/lib/private"}
    assert not left, left
    return ""


def apply() -> str:
    """apply: from nothing to a service that answers; what it says is what plan said"""
    planned = [
        line for line in deploy("plan", "--from", wheel(FIRST)).splitlines() if line[0] != "#"
    ]
    start = time.monotonic()
    said = deploy("apply", "--from", wheel(FIRST)).splitlines()
    seconds = time.monotonic() - start
    assert said[: len(planned)] == planned, said
    assert said[len(planned)].startswith("done: the service is ready"), said
    assert "/etc/xetserve/xetserve.toml; after a change: /opt/xetserve/bin/xetserve " in said[-2]
    assert running_version() == FIRST
    mode = CONFIG.stat()
    assert (mode.st_mode & 0o777, mode.st_uid) == (0o640, 0)
    assert "ready: yes" in deploy("status")
    return f"{seconds:.1f} s"


def configuration() -> str:
    """the configuration is read by the service, which is nobody else, and never written again"""
    CONFIG.write_text('[hub]\nhub_url = "http://127.0.0.1:9090"\n')
    checks.sh("systemctl", "restart", SERVICE)
    checks.download("small.txt")
    assert deploy("apply", "--from", wheel(FIRST)).strip() == "nothing to change"
    assert CONFIG.read_text().startswith("[hub]")
    assert CONFIG.stat().st_mode & 0o777 == 0o640
    return (
        Path(f"/proc/{checks.main_pid()}/status").read_text().split("Groups:\t")[1].split("\n")[0]
    )


def settings() -> str:
    """settings that a reload can change are reloaded, and others restart the service"""
    pid, text = checks.main_pid(), CONFIG.read_text()
    CONFIG.write_text(text + "[server]\nwrite_timeout = 77\n")
    said = deploy("apply", "--from", wheel(FIRST))
    assert "# settings changed: reload\n" in said, said
    assert checks.main_pid() == pid
    assert "reloaded; changed: write_timeout" in checks.sh("journalctl", "-u", SERVICE)
    assert deploy("apply", "--from", wheel(FIRST)).strip() == "nothing to change"
    CONFIG.write_text(text + "[server]\ndrain_delay = 1\n")
    with load() as running:
        said = deploy("apply", "--from", wheel(FIRST))
    assert "# settings changed: restart" in said, said
    assert checks.main_pid() != pid
    found = json.loads(deploy("apply", "--from", wheel(FIRST), "--json"))
    assert found["changed"] is False
    CONFIG.write_text(text)
    deploy("apply", "--from", wheel(FIRST))
    return f"{running.num_served} requests, longest wait {running.longest:.2f} s"


def sandbox() -> str:
    """with the drop-in, verify is silent and security at most 1.0"""
    folder = Path("/etc/systemd/system")
    said = checks.sh(
        "systemd-analyze", "verify", str(folder / SERVICE), str(folder / "xetserve.socket")
    )
    assert not said, said
    rated = checks.sh("systemd-analyze", "security", "--threshold=10", SERVICE)
    return str(rated).splitlines()[-1].strip()


def upgrade() -> str:
    """an upgrade under load loses no request, and nobody waits for a slow download"""
    with load() as running, checks.SlowDownload() as slow:
        pid = checks.main_pid()
        said = deploy("apply", "--from", wheel(SECOND))
        assert running_version() == SECOND, said
        assert "without waiting (SIGUSR2)" in said, said
        running.go_on()
        assert checks.main_pid() != pid
        assert Path(f"/proc/{pid}").exists(), "its download has not ended"
        slow.finish()
    checks.until(lambda: not Path(f"/proc/{pid}").exists(), "the end of the old server")
    assert checks.show("NRestarts") == "0"
    return f"{running.num_served} requests, longest wait {running.longest:.2f} s"


def stop() -> str:
    """the server that took over is stopped like any other one: it drains, and is not killed"""
    with checks.SlowDownload() as slow:
        checks.sh("systemctl", "stop", "--no-block", SERVICE)
        checks.until(lambda: checks.show("StatusText").startswith("draining"), "draining")
        slow.finish()
    checks.until(lambda: checks.show("ActiveState") == "inactive", "the end")
    assert checks.show("Result") == "success"
    assert running_version() == SECOND
    return ""


def broken_upgrade() -> str:
    """a broken one changes nothing, and loses no request either"""
    with load() as running, checks.SlowDownload() as slow:
        pid = checks.main_pid()
        said = deploy("apply", "--from", wheel(BROKEN), "--timeout", "15", status=1)
        assert "has failed: the new server ended with status 1" in said, said
        assert "rolled back to versions/" + SECOND in said, said
        assert (running_version(), checks.main_pid()) == (SECOND, pid)
        slow.finish()
    assert not list(Path("/opt/xetserve/versions").glob(f"{BROKEN}*"))
    assert deploy("apply", "--from", wheel(SECOND)).strip() == "nothing to change"
    return f"{running.num_served} requests, longest wait {running.longest:.2f} s"


def bad_configuration() -> str:
    """a configuration that is no good stops an upgrade before anything is touched"""
    text = CONFIG.read_text()
    CONFIG.write_text(text + "[server]\nprot = 1\n")
    pid = checks.main_pid()
    said = deploy("apply", "--from", wheel(FIRST), status=1)
    assert "did you mean 'port'?" in said, said
    assert "nothing has changed for clients" in said
    CONFIG.write_text(text)
    assert checks.main_pid() == pid
    return ""


def rollback() -> str:
    """rollback goes to the version before"""
    with load() as running:
        deploy("rollback")
        assert running_version() == FIRST
    assert running_log()
    return f"{running.num_served} requests, longest wait {running.longest:.2f} s"


def secure() -> str:
    """a key pair that is a credential, redirects and proxy_protocol: all is known to deploy"""
    text, store = CONFIG.read_text(), checks.STORE
    was_there = str(store) in before
    store.mkdir(mode=0o700, exist_ok=True)
    files = {store / "xetserve.tls_cert": "cert.pem", store / "xetserve.tls_key": "key.pem"}
    for path, name in files.items():
        path.touch(0o600)
        path.write_bytes(Path("/checks", name).read_bytes())
    CONFIG.write_text(text + "[tls]\nredirect_port = 8081\n")
    # The service has not read any of it yet.
    assert "ready: yes, http://127.0.0.1:8080" in deploy("status")
    deploy("apply", "--from", wheel(SECOND))
    assert "ready: yes, https://127.0.0.1:8080" in deploy("status")
    proxies = '[proxies]\ntrusted_proxies = "192.0.2.1"\nproxy_protocol = true\n'
    with CONFIG.open("a") as file:
        file.write(proxies)
    checks.sh("systemctl", "restart", SERVICE)
    assert "ready: yes, https://127.0.0.1:8080" in deploy("status")
    deploy("rollback")
    said = deploy("status")
    assert f"version: {FIRST}-" in said, said
    CONFIG.write_text(text)
    for path in files:
        path.unlink()
    if not was_there:
        store.rmdir()
    checks.sh("systemctl", "restart", SERVICE)
    assert running_version() == FIRST
    return said.splitlines()[-1]


def own_version() -> str:
    """without --from, the deployed version is itself, and another installation asks for one"""
    said = deploy("apply", status=1)
    assert "(--from PATH)" in said, said
    done = checks.sh("/opt/xetserve/bin/xetserve", "deploy", "apply")
    assert done.strip() == "nothing to change", done
    return ""


def running_log() -> bool:
    return "listening on" in deploy("logs", "--lines", "1000")


def remove() -> str:
    """remove keeps configuration and cache, remove --purge leaves nothing"""
    deploy("remove")
    left = find_files() - before
    assert CONFIG.exists()
    assert all(name.startswith(("/etc/xetserve", "/var/cache")) for name in left), left
    deploy("remove", "--purge")
    # Made by systemd for any service with a dynamic user.
    left = find_files() - before - {"/var/cache/private", "/var/lib/private"}
    assert not left, left
    assert before <= find_files()
    assert "xetserve" not in Path("/etc/group").read_text()
    assert "xetserve" not in checks.sh(
        "systemctl", "list-units", "--all", "--no-pager", "--plain", "xetserve*"
    )
    return ""


CHECKS = (
    prepare,
    plan,
    broken_first,
    apply,
    configuration,
    settings,
    sandbox,
    upgrade,
    stop,
    broken_upgrade,
    bad_configuration,
    rollback,
    secure,
    own_version,
    remove,
)
FIRST, SECOND, BROKEN = sys.argv[1:4]


def main() -> int:
    status: int = checks.run_checks(
        [(check, ()) for check in CHECKS], lambda: shutil.rmtree("/root/tool", ignore_errors=True)
    )
    return status


if __name__ == "__main__":
    sys.exit(main())
