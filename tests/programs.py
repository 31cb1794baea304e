"""The programs that the tests run: clients, balancers, and tools of the system.

As a script, print the Debian packages of those that are missing. It runs before anything is
installed, so it needs nothing but the standard library.
"""

import os
import shutil
import sys
from typing import Final

# Program, and the package of Debian and Ubuntu that has it.
PACKAGES: Final = {
    "curl": "curl",
    "wget": "wget",
    "aria2c": "aria2",
    "axel": "axel",
    "git": "git",
    "git-lfs": "git-lfs",
    "node": "nodejs",
    "npm": "npm",
    "openssl": "openssl",
    "certbot": "certbot",
    "pebble": "pebble",  # an ACME server for tests, by Let's Encrypt
    "pebble-challtestsrv": "pebble",  # DNS for it
    "haproxy": "haproxy",
    "nginx": "nginx-light",
    "tinyproxy": "tinyproxy",
    "stunnel4": "stunnel4",
    "danted": "dante-server",
    "microsocks": "microsocks",
    "systemd-analyze": "systemd",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "ps": "procps",
    "sha256sum": "coreutils",
}


def find_program(name: str) -> str | None:
    """Return the path of a program, or None. Servers are not on every user's PATH."""
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")


def find_missing() -> dict[str, str]:
    """Return the programs that are missing, and their packages."""
    return {name: package for name, package in PACKAGES.items() if find_program(name) is None}


if __name__ == "__main__":
    sys.stdout.write(" ".join(find_missing().values()) + "\n")
