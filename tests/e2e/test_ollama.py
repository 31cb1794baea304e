"""What ollama sends, request by request (its server/download.go): manifest, HEAD, a GET that is
dropped, parts.
"""

import hashlib
import http.client
import json
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

from tests.conftest import Launcher, Process
from tests.e2e.client_site import LARGE, MODEL, SECRET, SMALL, ClientSite
from tests.e2e.clients import Connection
from tests.e2e.conftest import serve_arguments
from tests.e2e.hub import OTHER_TOKEN, TOKEN

AGENT = ("User-Agent", "ollama/0.31.1 (amd64 linux) Go/go1.26")
NUM_PARTS = 16
MIN_PART_SIZE = 100_000  # bytes; ollama's are of 100 MB


def pull(client_site: ClientSite, repo: str, tag: str, token: str | None) -> dict[str, bytes]:
    """Pull a model as ollama does; gives its blobs by digest."""
    connection = Connection(client_site.server.url)
    accept = ("Accept", "application/vnd.docker.distribution.manifest.v2+json")
    reply = connection.ask(f"/v2/{repo}/manifests/{tag}", [AGENT, accept], token=token)
    assert (reply.status, reply.headers["content-type"]) == (200, accept[1])
    manifest = json.loads(reply.body)
    blobs = {}
    for layer in (*manifest["layers"], manifest["config"]):
        target = f"/v2/{repo}/blobs/{layer['digest']}"
        head = connection.ask(target, [AGENT], method="HEAD", token=token)
        assert (head.status, int(head.headers["content-length"])) == (200, layer["size"])
        drop_get(client_site.server, target, token)
        blobs[layer["digest"]] = download_parts(client_site, target, layer["size"], token)
    connection.close()
    return blobs


def drop_get(server: Process, target: str, token: str | None) -> None:
    """Ask for the whole to see where it is, and leave at the sight of the head."""
    parts = urllib.parse.urlsplit(server.url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=60)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    connection.request("GET", target, headers={**headers, AGENT[0]: AGENT[1]})
    reply = connection.getresponse()
    assert (reply.status, reply.getheader("location")) == (200, None)
    reply.close()
    connection.close()


def download_parts(client_site: ClientSite, target: str, size: int, token: str | None) -> bytes:
    """Download in parts, all at once, each over a connection of its own."""
    step = max(size // NUM_PARTS + 1, MIN_PART_SIZE)
    starts = range(0, size, step)

    def get(start: int) -> bytes:
        connection = Connection(client_site.server.url)
        end = min(start + step, size) - 1
        reply = connection.ask(target, [AGENT, ("Range", f"bytes={start}-{end}")], token=token)
        connection.close()
        # What the Hub makes up itself may come whole.
        assert reply.status == 206 or (start, end, reply.status) == (0, size - 1, 200)
        if reply.status == 206:
            assert reply.headers["content-range"] == f"bytes {start}-{end}/{size}"
        return reply.body

    with ThreadPoolExecutor(NUM_PARTS) as pool:
        return b"".join(pool.map(get, starts))


def test_a_model_is_pulled(client_site: ClientSite) -> None:
    blobs = pull(client_site, MODEL, "Q4_K_M", None)
    for digest, content in blobs.items():
        assert f"sha256:{hashlib.sha256(content).hexdigest()}" == digest
    assert client_site.files[LARGE] in blobs.values()
    asked = client_site.control.requests()
    assert "bridge" not in {entry["kind"] for entry in asked}
    assert (
        len([entry for entry in asked if "/tree/" in entry["path"]]) <= 1
    )  # it may be known already


def test_a_private_model(client_site: ClientSite) -> None:
    blobs = pull(client_site, SECRET, "Q8_0", TOKEN)
    assert client_site.files[SMALL] in blobs.values()
    client_site.control.reset_requests()
    connection = Connection(client_site.server.url)
    for target in ("manifests/Q8_0", *(f"blobs/{digest}" for digest in blobs)):
        for token, status in ((OTHER_TOKEN, 404), (None, 401)):
            assert connection.ask(f"/v2/{SECRET}/{target}", token=token).status == status
    connection.close()
    assert {entry["kind"] for entry in client_site.control.requests()} == {"hub"}


def test_a_get_that_is_dropped_costs_little(client_site: ClientSite, launcher: Launcher) -> None:
    server = launcher.start(*serve_arguments(client_site.origin.url, "--access-log", "json"))
    content = client_site.files[LARGE]
    drop_get(server, f"/v2/{MODEL}/blobs/sha256:{hashlib.sha256(content).hexdigest()}", None)
    assert server.stop() == 0
    (record,) = [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]
    assert (record["status"], record["complete"]) == (200, False)
    assert record["upstream_bytes"] < len(content) / 2
