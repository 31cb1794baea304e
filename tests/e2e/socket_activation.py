"""A server that is handed its listening socket, as a service manager does."""

import socket
import subprocess
import sys

from tests.conftest import Launcher, Process, clean_environment
from tests.e2e.conftest import Site, serve_arguments

# What a service manager does: the socket at descriptor 3, variables that tell of it, the program.
HAND_OVER = """
import os, sys
given = int(sys.argv[1])
if given != 3:
    os.dup2(given, 3)
    os.close(given)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES="http")
os.execv(sys.executable, [sys.executable, "-m", "xetserve", *sys.argv[2:]])
"""


def start_on(
    sock: socket.socket, site: Site, launcher: Launcher, *flags: str, **environment: str
) -> Process:
    """Start a server that is handed a listening socket."""
    arguments = serve_arguments(site.origin.url, *flags)
    popen = subprocess.Popen(
        [sys.executable, "-c", HAND_OVER, str(sock.fileno()), *arguments],
        pass_fds=(sock.fileno(),),
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(**environment),
    )
    process = Process(popen, launcher.folder / f"inherited-{len(launcher.running)}.log")
    launcher.running.append(process)
    process.follow_log()
    return process
