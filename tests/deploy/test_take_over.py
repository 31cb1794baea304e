"""The replacement of a running server, as systemd tells of it."""

from pathlib import Path

import pytest

from tests.deploy.fake_machine import OK, FakeMachine
from xetserve.deploy.machine import DeployError, Done
from xetserve.deploy.take_over import PATIENCE, TakeOver

UNIT = "xetserve.service"
NEW = Path("/opt/xetserve/versions/2")
KILL = f"systemctl kill --kill-whom=main --signal=SIGUSR2 {UNIT}"
RESTART = f"systemctl restart {UNIT}"
FAILED = "the upgrade at 10:00:00 has failed: the new server ended with status 1"


class Service:
    """A service whose main process becomes another one, or not.

    after: what it is after the signal, one at a time; the last one stays.
    """

    def __init__(self, machine: FakeMachine, *after: tuple[int, str], status: str = "") -> None:
        self.machine = machine
        self.shown = (10, status)
        self.after = list(after)
        self.is_told = False
        machine.handlers.append(self.handle)
        machine.files["/proc/10/cmdline"] = b"/opt/xetserve/versions/1/bin/python\0x"
        machine.files["/proc/10/status"] = b"SigIgn:\t1001000\nSigCgt:\t0000000100004a02\n"

    def handle(self, command: tuple[str, ...]) -> Done | None:
        if command[:2] == ("systemctl", "kill"):
            self.is_told = True
            return OK
        if command[:2] != ("systemctl", "show"):
            return None
        if self.is_told and self.after:
            self.shown = self.after.pop(0)
        pid, status = self.shown
        return Done(0, f"MainPID={pid}\nStatusText={status}; 3 connections\n", "")

    def changing(self) -> list[str]:
        return [line for line in self.machine.commands if " show " not in line]


@pytest.fixture
def machine() -> FakeMachine:
    return FakeMachine()


def test_it_is_over_when_another_process_is_the_main_one(machine: FakeMachine) -> None:
    service = Service(machine, (10, "upgrading"), (10, ""), (11, ""))
    step = TakeOver(UNIT, NEW)
    assert (
        step.describe() == f"replace the running server of {UNIT} by 2, without waiting (SIGUSR2)"
    )
    step.do(machine)
    assert service.changing() == [KILL]
    assert service.after == []


@pytest.mark.parametrize(
    ("after", "message"),
    [
        pytest.param([(10, FAILED)], "ended with status 1", id="it fails"),
        pytest.param([(0, "")], "has ended", id="the service ends"),
        pytest.param([], f"within {PATIENCE:g} s", id="nothing happens"),
    ],
)
def test_a_failure_is_told(
    machine: FakeMachine, after: list[tuple[int, str]], message: str
) -> None:
    service = Service(machine, *after)
    with pytest.raises(DeployError, match=message):
        TakeOver(UNIT, NEW).do(machine)
    assert service.changing() == [KILL]


def test_a_failure_from_before_is_none_now(machine: FakeMachine) -> None:
    Service(machine, (10, FAILED), (10, FAILED), (11, ""), status=FAILED)
    TakeOver(UNIT, NEW).do(machine)


def test_the_same_failure_again_is_one(machine: FakeMachine) -> None:
    Service(machine, (10, FAILED.replace("10:00:00", "10:00:05")), status=FAILED)
    with pytest.raises(DeployError, match="10:00:05"):
        TakeOver(UNIT, NEW).do(machine)


def test_on_the_way_back_a_restart_is_the_last_means(machine: FakeMachine) -> None:
    service = Service(machine, (10, FAILED))
    TakeOver(UNIT, NEW, may_restart=True).do(machine)
    assert service.changing() == [KILL, RESTART]


def test_nothing_is_done_if_the_wanted_one_runs(machine: FakeMachine) -> None:
    """After an upgrade that failed, for example."""
    service = Service(machine)
    TakeOver(UNIT, Path("/opt/xetserve/versions/1"), may_restart=True).do(machine)
    assert service.changing() == []


@pytest.mark.parametrize("status", [b"SigCgt:\t0000000100004002\n", b"", None])
def test_a_server_that_the_signal_would_kill_is_restarted(
    machine: FakeMachine, status: bytes | None
) -> None:
    """Versions before this one, and a service that does not run."""
    service = Service(machine)
    machine.files.pop("/proc/10/status")
    if status is not None:
        machine.files["/proc/10/status"] = status
    TakeOver(UNIT, NEW).do(machine)
    assert service.changing() == [RESTART]
