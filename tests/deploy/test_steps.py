"""What counts as ready, when a version is checked."""

import json
from pathlib import Path

import pytest

from tests.deploy.fake_machine import FakeMachine
from xetserve.deploy.local_server import Answer
from xetserve.deploy.machine import DeployError, Done
from xetserve.deploy.steps import Command, Folder, Plan, carry_out, describe_ready, undo_making


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


def test_an_interrupted_apply_leaves_nothing() -> None:
    def interrupt(command: tuple[str, ...]) -> Done:
        raise KeyboardInterrupt

    machine = FakeMachine()
    machine.handlers.append(interrupt)
    machine.make_folder(Path("/"), 0o755, None)
    made = Folder(Path("/made/by/us"))
    plan = Plan(
        [made, Command(("docker", "build"))], switch=2, cleanup=undo_making(machine, [made])
    )
    with pytest.raises(DeployError, match="interrupted; nothing has changed for clients"):
        carry_out(plan, machine, lambda _: None)
    assert not machine.exists(Path("/made"))
