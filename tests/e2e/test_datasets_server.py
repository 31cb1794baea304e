"""The datasets package finds datasets-server by a name in front of that of the server."""

import asyncio
import json
from pathlib import Path

from tests.conftest import Launcher
from tests.e2e.conftest import serve_arguments
from tests.e2e.hub import TOKEN, run_script
from tests.peers import Received, ScriptedPeer, answering, http_answer

INFOS = {"default": {"splits": {"train": {"num_examples": 7}}}}
READY = {"partial": False, "pending": [], "failed": []}


def answer(request: Received) -> bytes:
    url = "https://huggingface.co/datasets/o/n/resolve/refs%2Fconvert%2Fparquet/default/0.parquet"
    files = [{"dataset": "o/n", "config": "default", "split": "train", "url": url}]
    value = READY | ({"parquet_files": files} if request.path == "/parquet" else {})
    body = json.dumps(value | {"dataset_info": INFOS}).encode()
    return http_answer(200, body, "Content-Type: application/json", "X-Revision: abc")


async def test_the_official_client_asks_it(
    data_client: str, launcher: Launcher, tmp_path: Path
) -> None:
    async with (
        ScriptedPeer(answering(http_answer(404))) as hub,
        ScriptedPeer(answering(answer)) as datasets,
    ):
        server = await asyncio.to_thread(
            launcher.start, *serve_arguments(hub.base, "--datasets-server", datasets.base)
        )
        endpoint = server.url.replace("127.0.0.1", "files.test")
        printed = await asyncio.to_thread(
            run_script,
            data_client,
            endpoint,
            tmp_path / "home",
            """
            import socket
            from datasets.utils import _dataset_viewer as viewer
            real = socket.getaddrinfo
            names = ("files.test", "datasets-server.files.test")
            socket.getaddrinfo = lambda host, *rest, **more: real(
                "127.0.0.1" if host in names else host, *rest, **more)
            files = viewer.get_exported_parquet_files("o/n", "abc", None)
            infos = viewer.get_exported_dataset_infos("o/n", "abc", None)
            print(json.dumps([[file["url"] for file in files], infos]))
            """,
        )
        asked = datasets.requests
    urls, infos = json.loads(printed)
    path = "/datasets/o/n/resolve/refs%2Fconvert%2Fparquet/default/0.parquet"
    assert (urls, infos) == ([endpoint + path], INFOS)
    assert {request.target for request in asked} == {"/parquet?dataset=o/n", "/info?dataset=o/n"}
    assert {request.get("authorization") for request in asked} <= {f"Bearer {TOKEN}", None}
    assert all((request.get("user-agent") or "").startswith("xetserve/") for request in asked)
