"""What counts as ready, when a version is checked."""

import json

import pytest

from xetserve.deploy.local_server import Answer
from xetserve.deploy.steps import describe_ready


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ((200, b'{"status": "ready"}'), "yes"),
        (
            (200, json.dumps({"status": "degraded", "cause": "cache"}).encode()),
            "yes, but degraded: cache",
        ),
        ((503, json.dumps({"cause": "hub"}).encode()), "yes, but the Hub does not answer"),
        ((503, json.dumps({"cause": "cache"}).encode()), "503"),
        ((503, b'{"status": "draining"}'), "503"),
        ((503, b"[]"), "503"),
        ((502, b"<html>"), "502"),
    ],
)
def test_what_ready_says(answer: tuple[int, bytes], expected: str) -> None:
    assert describe_ready(Answer("http://h", *answer)) == expected
