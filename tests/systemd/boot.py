"""A real systemd boot with our units in it: prepares a root file system, boots it with
systemd-nspawn, runs checks.py inside.

    python3 tests/systemd/boot.py --cache DIR [--deploy | --certificates]
        [--rootfs FILE.tar | --mirror URL] [--keep]

With --deploy, nothing is installed, and deploy_checks.py has `xetserve deploy` do it. With
--certificates, certificate_checks.py has it turn TLS on, with certbot and with Pebble.

Needs root, systemd-nspawn (Debian: systemd-container), nsenter and openssl, and pip of the Python
that the root file system has (Debian 12: 3.11). FILE.tar is a minimal Debian 12 with the packages
below; without it, one is made with mmdebstrap and kept in DIR, as are the dependencies' wheels.
Exits 0 when all checks passed; takes about 3 minutes, or ends with 1.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOCK = "xetserve/deploy/requirements.lock"
PACKAGES = "systemd,systemd-sysv,dbus,procps,ca-certificates,python3,python3-venv"
MORE_PACKAGES = "certbot,pebble,openssl"  # for --certificates
TIME_LIMIT = 420.0  # seconds for the boot and the checks
CGROUPS = Path("/sys/fs/cgroup")


def run(*command: str | Path, timeout: float = 300.0, cwd: Path | None = None) -> None:
    """Run a command that has to succeed."""
    subprocess.run([str(part) for part in command], check=True, timeout=timeout, cwd=cwd)


def say(text: str) -> None:
    sys.stdout.write(f"# {text}\n")
    sys.stdout.flush()


def make_base(cache: Path, mirror: str | None, *, more: bool) -> Path:
    """Give the tar file of a minimal Debian 12; made once."""
    base = cache / f"bookworm{'-more' if more else ''}.tar"
    if not base.exists():
        say("making a root file system")
        partial = base.with_suffix(".partial.tar")
        mirrors = [mirror] if mirror else []
        packages = f"{PACKAGES},{MORE_PACKAGES}" if more else PACKAGES
        variant = ("--variant=minbase", f"--include={packages}")
        run("mmdebstrap", *variant, "bookworm", partial, *mirrors)
        partial.rename(base)
    return base


def make_wheels(cache: Path, python: str) -> Path:
    """Give a folder with the project's wheel as it is now, and those of its dependencies."""
    wheels = cache / "wheels"
    wheels.mkdir(exist_ok=True)
    for old in wheels.glob("xetserve-*"):
        old.unlink()
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        # A copy: building leaves files beside the code.
        ignored = shutil.ignore_patterns(".git", "*.egg-info", "build", "tests", "__pycache__")
        shutil.copytree(ROOT, source, ignore=ignored)
        # What is locked comes as it is on the index, for its hash.
        lock = source.joinpath(LOCK)
        run(*pip, "wheel", "--require-hashes", "--wheel-dir", wheels, "-r", lock)
        run(*pip, "wheel", "--no-deps", "--wheel-dir", wheels, source)
        shutil.copy(lock, wheels)
    return wheels


def make_versions(cache: Path, python: str) -> list[str]:
    """Make wheels of an upgrade, and of one whose server does not start, beside that of
    make_wheels; gives all versions.
    """
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    init = (ROOT / "xetserve/__init__.py").read_text()
    first = init.split('__version__ = "')[1].split('"')[0]
    versions = [first, f"{first}.post1", f"{first}.post2"]
    for version in versions[1:]:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "source"
            ignored = shutil.ignore_patterns(".git", "*.egg-info", "build", "tests", "__pycache__")
            shutil.copytree(ROOT, source, ignore=ignored)
            (source / "xetserve/__init__.py").write_text(init.replace(f'"{first}"', f'"{version}"'))
            if version == versions[2]:
                with (source / "xetserve/commands/serve/command.py").open("a") as file:
                    file.write("\n\ndef run_serve(options, config):\n    return 1\n")
            run(*pip, "wheel", "--no-deps", "--wheel-dir", cache / "wheels", source)
    return versions


def install(tree: Path, wheels: Path) -> None:
    """Install the project, as the operations chapter says."""
    shutil.copytree(wheels, tree / "wheels")
    run("chroot", tree, "python3", "-m", "venv", "/opt/xetserve")
    pip = ("/opt/xetserve/bin/pip", "--quiet", "--disable-pip-version-check", "install")
    local = ("--no-index", "--find-links", "/wheels")
    run("chroot", tree, *pip, *local, "--require-hashes", "-r", "/wheels/requirements.lock")
    run("chroot", tree, *pip, *local, "--no-deps", "xetserve")
    units = tree / "etc/systemd/system"
    for unit in (ROOT / "systemd").iterdir():
        shutil.copy(unit, units / unit.name)
    copy_checks(tree)


def copy_checks(tree: Path) -> Path:
    """Put the checks into the tree, and a key pair for them; gives their folder."""
    checks = tree / "checks"
    checks.mkdir()
    for name in ("checks.py", "deploy_checks.py", "certificate_checks.py"):
        shutil.copy(Path(__file__).with_name(name), checks)
    run(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
        *("-nodes", "-days", "30", "-keyout", checks / "key.pem", "-out", checks / "cert.pem"),
        *("-subj", "/CN=xetserve", "-addext", "subjectAltName=IP:127.0.0.1"),
    )
    return checks


@contextmanager
def own_cgroups() -> Iterator[None]:
    """Be in control groups of our own where systemd-nspawn makes some: those of others stay as they
    are.
    """
    name = f"xetserve-check-{os.getpid()}"
    homes = []
    for tree in (CGROUPS / "systemd", CGROUPS / "unified", CGROUPS):
        if (tree / "cgroup.procs").exists() and os.access(tree, os.W_OK):
            before = own_cgroup(tree)
            (tree / name).mkdir()
            (tree / name / "cgroup.procs").write_text(str(os.getpid()))
            homes.append((before, tree / name))
    try:
        yield
    finally:
        for before, group in homes:
            (before / "cgroup.procs").write_text(str(os.getpid()))
            for folder, _, _ in os.walk(group, topdown=False):
                Path(folder).rmdir()


def own_cgroup(tree: Path) -> Path:
    """Give the group of this process in a tree."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controller, path = line.split(":", 2)
        if controller == ("name=systemd" if tree.name == "systemd" else ""):
            return tree / path.lstrip("/")
    return tree


@contextmanager
def booted(tree: Path, log: Path) -> Iterator[int]:
    """Boot the tree; gives the process id of its systemd, out here."""
    with log.open("wb") as output:
        nspawn = subprocess.Popen(
            [
                *("systemd-nspawn", "--quiet", "--directory", str(tree), "--boot"),
                *("--register=no", "--keep-unit", "--private-network", "--console=pipe"),
                f"--machine=xetserve-{os.getpid()}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    leader = 0
    try:
        deadline = time.monotonic() + 60
        children = Path(f"/proc/{nspawn.pid}/task/{nspawn.pid}/children")
        while not leader:
            if nspawn.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no boot: {log.read_text(errors='replace')}")
            found = children.read_text().split()
            if found and Path(f"/proc/{found[0]}/comm").read_text().strip() == "systemd":
                leader = int(found[0])
            time.sleep(0.1)
        yield leader
    finally:
        if leader and nspawn.poll() is None:
            os.kill(leader, signal.SIGRTMIN + 4)  # systemd: power off
        try:
            nspawn.wait(timeout=60)
        except subprocess.TimeoutExpired:
            nspawn.kill()
            nspawn.wait()


def check(leader: int, *script: str) -> int:
    """Run a script of checks inside; gives its status."""
    # All namespaces but that of users: root in there is root out here.
    inside = ["nsenter", "-t", str(leader), "-m", "-u", "-i", "-n", "-p", "--"]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
    command = [*inside, "python3", *script]
    return subprocess.run(command, env=environment, timeout=TIME_LIMIT, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cache", type=Path, required=True, help="folder for what is made once")
    parser.add_argument("--rootfs", type=Path, help="tar file of a minimal Debian 12")
    parser.add_argument("--mirror", help="Debian mirror that one is made from")
    parser.add_argument("--python", default="python3.11", help="Python as in the root file system")
    parser.add_argument("--keep", action="store_true", help="leave the booted tree and its log")
    parser.add_argument("--deploy", action="store_true", help="check `xetserve deploy` instead")
    parser.add_argument("--certificates", action="store_true", help="check TLS by deploy instead")
    options = parser.parse_args()
    cache: Path = options.cache.resolve()
    cache.mkdir(parents=True, exist_ok=True)
    base = options.rootfs or make_base(cache, options.mirror, more=options.certificates)
    wheels = make_wheels(cache, options.python)
    work = Path(tempfile.mkdtemp(prefix="boot-", dir=cache))
    tree, log = work / "tree", work / "console.log"
    try:
        say("installing")
        tree.mkdir()
        # Device nodes are nspawn's business.
        run("tar", "-C", tree, "--exclude=./dev/*", "-xf", base)
        script = ["/checks/checks.py"]
        if options.deploy:
            versions = make_versions(cache, options.python)
            shutil.copytree(wheels, tree / "wheels")
            copy_checks(tree)
            script = ["/checks/deploy_checks.py", *versions]
        elif options.certificates:
            shutil.copytree(wheels, tree / "wheels")
            copy_checks(tree)
            script = ["/checks/certificate_checks.py"]
        else:
            install(tree, wheels)
        say("booting")
        with own_cgroups(), booted(tree, log) as leader:
            return check(leader, *script)
    except (subprocess.SubprocessError, RuntimeError, OSError) as exc:
        say(f"failed: {exc}")
        return 1
    finally:
        if not options.keep:
            shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
