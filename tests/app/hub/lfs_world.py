"""A Hub with LFS objects, in front of which the application runs."""

import hashlib
import json
from collections.abc import Callable

from tests.app.world import CONTENT, NAME, SIGNATURE, World
from tests.peers import Answer, Received, http_answer

SHA = hashlib.sha256(CONTENT).hexdigest()
SMALL = b"only in the past"
SMALL_SHA = hashlib.sha256(SMALL).hexdigest()


def make_world(**answers: Answer | Callable[[Received], Answer]) -> World:
    """A Hub with one large file in its listing, and an older one that only LFS knows."""
    world = World()

    def hub(request: Received) -> Answer:
        path = request.path
        what = next((w for w in ("batch", "tree", "resolve", "xet-read-token") if w in path), "")
        given = answers.get(what)
        if given is not None:
            return given(request) if callable(given) else given
        if what == "tree":
            entry = {"type": "file", "path": "d/a ü.bin", "lfs": {"oid": SHA, "size": len(CONTENT)}}
            return http_answer(200, json.dumps([entry]).encode())
        if what == "resolve":
            return http_answer(
                302, b"", f"Location: {world.data.base}/bridge?{SIGNATURE}", f"X-Xet-Hash: {NAME}",
                f"X-Linked-Size: {len(CONTENT)}", f'X-Linked-ETag: "{SHA}"',
            )  # fmt: skip
        if what == "batch":
            objects = [
                {"oid": item["oid"], "size": item["size"], "actions": {"download": {
                    "href": f"{world.data.base}/old?{SIGNATURE}", "header": {"X-Secret": "1"}}}}
                for item in json.loads(request.body)["objects"] if item["oid"] in (SHA, SMALL_SHA)
            ]  # fmt: skip
            return http_answer(200, json.dumps({"objects": objects}).encode())
        del world.answers["hub"]
        try:
            return world._hub(request)
        finally:
            world.answers["hub"] = hub

    world.answers["hub"] = hub
    return world
