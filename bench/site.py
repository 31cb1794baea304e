"""The site that is measured: data, uploaded by the official client to an origin whose data plane is nginx."""

import os
import random
import re
import shutil
import subprocess
import sys
import time
from array import array
from pathlib import Path

MIB = 1024 * 1024
REPO = "bench/files"
TOKEN = "hf_bench"
START_TIMEOUT = 60.0
KINDS = ("raw", "lz4", "bg4")

_NGINX = """\
worker_processes 1; daemon off; pid {work}/nginx.pid; error_log {work}/nginx-error.log;
events {{ worker_connections 4096; }}
http {{
  log_format bytes '$body_bytes_sent'; access_log {work}/data.log bytes;
  sendfile on; tcp_nopush on; keepalive_requests 1000000;
  client_body_temp_path {work}/t1; proxy_temp_path {work}/t2; fastcgi_temp_path {work}/t3;
  uwsgi_temp_path {work}/t4; scgi_temp_path {work}/t5;
  server {{
    listen 127.0.0.1:{port};
    location /data/ {{ alias {work}/origin/xorbs/; }}
    location /files/ {{ alias {work}/files/; access_log off; }}
    location /bridge/ {{ proxy_pass {origin}/{repo}/resolve/main/; access_log off; }}
  }}
}}
"""


def make_files(folder: Path, size: int) -> None:
    """Make one file of each kind: incompressible, half compressible by LZ4, float32 tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    source = random.Random(1)
    with (folder / "raw.bin").open("wb") as raw, (folder / "lz4.bin").open("wb") as lz4:
        for _ in range(size // MIB):
            block = os.urandom(MIB)
            raw.write(block)
            pieces = [block[at : at + 1024] for at in range(0, MIB // 2, 1024)]
            lz4.write(b"".join(piece for piece in pieces for _ in range(2)))
    with (folder / "bg4.bin").open("wb") as bg4:
        gauss = array("f", (source.gauss(0, 0.02) for _ in range(MIB // 4))).tobytes()
        # Other mantissas each time, the same exponents: other chunks, the same kind of data. As one
        # large number, since that is what Python does quickly.
        words, low_halves = (
            int.from_bytes(gauss, "little"),
            int.from_bytes(b"\xff\xff\0\0" * (MIB // 4), "little"),
        )
        for _ in range(size // MIB):
            noise = int.from_bytes(os.urandom(MIB), "little") & low_halves
            bg4.write((words ^ noise).to_bytes(MIB, "little"))


class Server:
    """A process that listens, measured from outside."""

    def __init__(self, command: list[str], log: Path, listening: str) -> None:
        with log.open("wb") as errors:
            self.process = subprocess.Popen(command, stderr=errors)
        deadline = time.monotonic() + START_TIMEOUT
        self.url = ""
        while not self.url and time.monotonic() < deadline and self.process.poll() is None:
            match = re.search(listening, log.read_text())
            self.url = match[1] if match else ""
            time.sleep(0.02)
        if not self.url:
            self.stop()
            raise SystemExit(f"{command[:4]} did not start: {log.read_text()}")

    def cpu_seconds(self) -> float:
        """User and system time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def peak_memory(self) -> float:
        """Resident memory at most, in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        match = re.search(r"VmHWM:\s+(\d+)", status)
        return int(match[1]) / 1024 if match else 0.0

    def stop(self) -> None:
        """End it."""
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait()


def start_xetserve(work: Path, *arguments: str) -> Server:
    """Start a xetserve command on a free port of the loopback interface."""
    command = [sys.executable, "-m", "xetserve", *arguments, "--host", "127.0.0.1", "--port", "0"]
    return Server(command, work / f"{arguments[0]}.log", r"listening on (http://\S+?:\d+)")


class Site:
    """Origin and nginx on a work folder; what was prepared there before is used again."""

    def __init__(self, work: Path, size: int, port: int) -> None:
        self.work = work
        self.size = size
        self.nginx_url = f"http://127.0.0.1:{port}"
        work.mkdir(parents=True, exist_ok=True)
        marker = work / f"prepared-{size}"
        if not marker.exists():
            shutil.rmtree(work)
            make_files(work / "files", size)
        self.origin = start_xetserve(
            work, "origin", str(work / "origin"), "--data-url", self.nginx_url, "--test-controls"
        )
        program = shutil.which("nginx") or "/usr/sbin/nginx"
        config = work / "nginx.conf"
        config.write_text(_NGINX.format(work=work, port=port, origin=self.origin.url, repo=REPO))
        self.nginx = subprocess.Popen([program, "-c", str(config)], stderr=subprocess.DEVNULL)
        if not marker.exists():
            self._upload()
            marker.touch()

    def _upload(self) -> None:
        script = (
            "import sys; from huggingface_hub import HfApi; api = HfApi();"
            "api.create_repo(sys.argv[1], exist_ok=True);"
            "api.upload_folder(repo_id=sys.argv[1], folder_path=sys.argv[2])"
        )
        subprocess.run(
            [sys.executable, "-c", script, REPO, str(self.work / "files")],
            env=self.client_environment(self.work / "upload-home"),
            check=True,
            stderr=subprocess.DEVNULL,
        )

    def client_environment(self, home: Path) -> dict[str, str]:
        """What the official client needs to talk to the origin."""
        kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        return {
            **kept,
            "HF_ENDPOINT": self.origin.url,
            "HF_HOME": str(home),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }

    def data_bytes(self) -> int:
        """Bytes that the data plane has sent so far."""
        log = self.work / "data.log"
        return sum(map(int, log.read_text().split())) if log.exists() else 0

    def stop(self) -> None:
        """End origin and nginx."""
        self.nginx.terminate()
        self.nginx.wait()
        self.origin.stop()
