"""The measured site: an origin with files from the official client, and nginx for its data.

    {work}/{size}MiB/files/          the files themselves, which nginx serves: the ceiling
    {work}/{size}MiB/origin/         the origin's folder; nginx serves its xorbs
    {work}/{size}MiB/prepared.json   path in the repository -> commits of its uploads

Files from earlier runs are used again. A file is made and uploaded when a measurement first needs
it.
"""

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from bench.data import KINDS, edit, iter_fragmented, write_file
from bench.processes import BenchError, Child, clean_environment, start_xetserve
from xetserve.origin.store.xorbs import parse_index

REPO: Final = "bench/files"
TOKEN: Final = "hf_bench"
EDITED: Final = "edited.bin"
FRAGMENTED: Final = "fragmented.bin"

_NGINX: Final = """\
# One process without workers, which is easy to measure and stop.
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/nginx-error.log;
events {{ worker_connections 8192; }}
http {{
  log_format data '$status $body_bytes_sent'; access_log off;
  sendfile on; tcp_nopush on; keepalive_requests 1000000;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location /data/ {{ alias {folder}/origin/xorbs/; access_log {folder}/data.log data; }}
    location /files/ {{ alias {folder}/files/; }}
    location /bridge/ {{ proxy_pass {origin}/{repo}/resolve/main/; }}
  }}
  server {{
    listen 127.0.0.1:{secure_port} ssl backlog=4096;
    ssl_certificate {folder}/server.pem; ssl_certificate_key {folder}/server.key;
    location /data/ {{ alias {folder}/origin/xorbs/; access_log {folder}/data.log data; }}
  }}
}}
"""

_UPLOAD: Final = """\
import sys
from huggingface_hub import HfApi
repo, path, name = sys.argv[1:]
api = HfApi()
api.create_repo(repo, exist_ok=True)
print(api.upload_file(path_or_fileobj=path, path_in_repo=name, repo_id=repo).oid)
"""


class DataTraffic(NamedTuple):
    """The traffic of the data plane."""

    num_requests: int
    nbytes: int


class Site:
    """An origin and nginx on a work folder, which the official client fills.

    Args:
        size: bytes in one file; other sizes are fractions or multiples of it.
    """

    def __init__(self, work: Path, size: int) -> None:
        self.size = size
        self.folder = work / f"{size // 2**20}MiB"
        self.files = self.folder / "files"
        self._stack = ExitStack()
        self._marker = self.folder / "prepared.json"
        self._commits: dict[str, list[str]] = {}

    def __enter__(self) -> Self:
        self.files.mkdir(parents=True, exist_ok=True)
        if self._marker.exists():
            self._commits = json.loads(self._marker.read_text())
        with self._stack:
            port, self._secure_port = _find_free_port(), _find_free_port()
            self.nginx_url = f"http://127.0.0.1:{port}"
            self.ca_file = make_certificates(self.folder)
            self.origin = self.start_origin("origin.log", "--data-url", self.nginx_url)
            self.nginx = self._start_nginx(port)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def start_origin(self, log: str, *flags: str) -> Child:
        """Start an origin on the folder. Do not upload to an origin beside the first one."""
        folder = str(self.folder / "origin")
        child = start_xetserve(self.folder / log, "origin", folder, "--test-controls", *flags)
        self._stack.callback(child.stop)
        return child

    def need_secure_origin(self) -> Child:
        """Return an origin whose data comes over HTTPS, for reading only; start it if needed."""
        url = f"https://127.0.0.1:{self._secure_port}"
        return self.start_origin("secure-origin.log", "--data-url", url)

    def _start_nginx(self, port: int) -> Child:
        program = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
        if program is None:
            raise BenchError("nginx is not installed: apt-get install nginx-light")
        config = self.folder / "nginx.conf"
        config.write_text(
            _NGINX.format(
                folder=self.folder,
                port=port,
                secure_port=self._secure_port,
                origin=self.origin.url,
                repo=REPO,
            )
        )
        child = Child([program, "-c", str(config)], self.folder / "nginx.log")
        self._stack.callback(child.stop)
        _wait_until_accepting(port, child)
        return child

    def start_server(
        self,
        *flags: str,
        hub_url: str = "",
        python: str = sys.executable,
        ca_file: Path | None = None,
    ) -> Child:
        """Start xetserve in front of the origin. The caller stops it, or the site at its end.

        Args:
            python, ca_file: see start_xetserve.
        """
        child = start_xetserve(
            self.folder / "serve.log",
            *("serve", "--hub-url", hub_url or self.origin.url, *flags),
            python=python,
            ca_file=ca_file,
        )
        self._stack.callback(child.stop)
        return child

    def client_environment(self, home: Path, hub_url: str = "") -> dict[str, str]:
        """Return the official client's environment for the origin, with default speed settings."""
        return clean_environment(
            HF_ENDPOINT=hub_url or self.origin.url,
            HF_HOME=str(home),
            HF_TOKEN=TOKEN,
            HF_HUB_DISABLE_TELEMETRY="1",
            HF_HUB_DISABLE_PROGRESS_BARS="1",
        )

    # Files

    def need_kind(self, kind: str, size: int | None = None) -> str:
        """Return the path of a file of a kind in the repository; make and upload it if needed."""
        size = self.size if size is None else size
        name = f"{kind}.bin" if size == self.size else f"{kind}-{size // 2**20}MiB.bin"
        path = self.files / name
        if name not in self._commits or (size == self.size and not path.exists()):
            _say(f"making {name}")
            write_file(path, KINDS[kind](size))
            self._upload(path, name)
            if size != self.size:  # nginx does not serve files of this size
                path.unlink()
        return name

    def need_fragmented(self) -> str:
        """Return the path of the fragmented file; make it if needed.

        It has a quarter of the default size, and a sixteenth of it is distinct.
        """
        if FRAGMENTED not in self._commits:
            path = self.folder / FRAGMENTED
            write_file(path, iter_fragmented(self.size // 4, self.size // 16))
            self._upload(path, FRAGMENTED)
            path.unlink()
        return FRAGMENTED

    def need_edited(self) -> tuple[str, str, str]:
        """Return the path of a file with two revisions, and their commits; make it if needed."""
        if len(self._commits.get(EDITED, ())) < 2:
            path = self.folder / EDITED
            content = b"".join(KINDS["bg4"](self.size // 4))
            self._commits[EDITED] = []
            for revision in (content, edit(content)):
                path.write_bytes(revision)
                self._upload(path, EDITED)
            path.unlink()
        first, second = self._commits[EDITED]
        return EDITED, first, second

    def _upload(self, path: Path, name: str) -> None:
        _say(f"uploading {name} with the official client")
        done = subprocess.run(
            [sys.executable, "-c", _UPLOAD, REPO, str(path), name],
            env=self.client_environment(self.folder / "upload-home"),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise BenchError(f"the upload of {name} failed: {done.stderr}")
        self._commits.setdefault(name, []).append(done.stdout.strip())
        self._marker.write_text(json.dumps(self._commits))

    # Data of the origin and the data plane

    def read_xorbs(self, name: str) -> list[str]:
        """Return the names of the xorbs that a file is built from."""
        return list(dict.fromkeys(xorb for xorb, *_ in self._read_terms(name)))

    def _read_terms(self, name: str, revision: str = "main") -> list[tuple[str, int, int, int]]:
        url = f"{self.origin.url}/{REPO}/resolve/{revision}/{name}"
        with _open(urllib.request.Request(url, method="HEAD")) as response:
            file_hash = response.headers["X-Xet-Hash"]
        path = self.folder / "origin" / "files" / f"{file_hash}.json"
        return [tuple(term) for term in json.loads(path.read_text())["terms"]]

    def read_chunks(self, name: str, revision: str = "main") -> dict[bytes, int]:
        """Return the distinct chunks of a file: chunk hash -> bytes of its record in the xorb."""
        origin = self.folder / "origin"
        indexes = {}
        chunks: dict[bytes, int] = {}
        for xorb, start, end, _ in self._read_terms(name, revision):
            if xorb not in indexes:
                indexes[xorb] = parse_index((origin / "xorb-index" / xorb).read_bytes())
            index = indexes[xorb]
            for chunk in range(start, end):
                begin = index.record_ends[chunk - 1] if chunk else 0
                chunks[index.chunk_hash(chunk)] = index.record_ends[chunk] - begin
        return chunks

    def data_traffic(self) -> DataTraffic:
        """Wait until the data plane is idle; return its traffic since the site was prepared."""
        log = self.folder / "data.log"
        size = -1
        while size != (size := log.stat().st_size if log.exists() else 0):
            time.sleep(0.1)
        lines = log.read_text().splitlines() if log.exists() else []
        return DataTraffic(len(lines), sum(int(line.partition(" ")[2]) for line in lines))


def set_faults(origin: Child, **faults: Any) -> None:
    """Set the faults of an origin; faults that are not named are reset."""
    url = f"{origin.url}/_test/faults"
    request = urllib.request.Request(url, data=json.dumps(faults).encode(), method="POST")
    _open(request).close()


def count_requests(origin: Child, part: str) -> int:
    """Return the number of requests to an origin whose path contains part."""
    with _open(urllib.request.Request(f"{origin.url}/_test/requests")) as response:
        return sum(part in item["path"] for item in json.load(response))


def make_certificates(folder: Path) -> Path:
    """Make a CA and its certificate for 127.0.0.1, valid for years; return the CA's file."""
    if not (folder / "server.pem").exists():
        (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
        new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        for arguments in (
            ("req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "3650",
             "-subj", "/CN=bench CA"),
            ("req", *new_key, "-keyout", "server.key", "-out", "server.csr",
             "-subj", "/CN=127.0.0.1"),
            ("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
             "-CAcreateserial", "-days", "3650", "-extfile", "names", "-out", "server.pem"),
        ):  # fmt: skip
            command = ["openssl", *arguments]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise BenchError(f"{' '.join(command)} failed: {done.stderr}")
    return folder / "ca.pem"


def _open(request: urllib.request.Request) -> Any:
    request.add_header("Authorization", f"Bearer {TOKEN}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return opener.open(request, timeout=30)


def _find_free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _wait_until_accepting(port: int, child: Child) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and child.process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise BenchError(f"{child.name} did not start: {child.log.read_text()}")


def _say(text: str) -> None:
    sys.stderr.write(f"bench: {text}\n")
