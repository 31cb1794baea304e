"""`xetserve deploy`: install, upgrade, check, roll back or remove the service on this machine.

systemd, Docker or Podman runs the service.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Final

from xetserve.commands.arguments import DEFAULT_MEMORY, DEFAULT_TIMEOUT, TARGETS
from xetserve.commands.output import write_output
from xetserve.commands.service_settings import find_speech
from xetserve.config.parsers import parse_count, parse_seconds
from xetserve.config.template import make_env_template, make_toml_template
from xetserve.deploy.containers import ContainerTarget, Shape, find_engine
from xetserve.deploy.machine import DeployError, Machine, PlanningMachine, RealMachine
from xetserve.deploy.package import find_clone, read_own_package, read_package
from xetserve.deploy.steps import Plan, carry_out
from xetserve.deploy.systemd import Paths, SystemdTarget, find_systemd
from xetserve.errors import ConfigError


def run_deploy(options: argparse.Namespace) -> int:
    """Run the subcommand; return the exit status: 0, or 1 if it failed.

    Raises:
        ConfigError: an argument is invalid.
    """
    machine = PlanningMachine() if options.action == "plan" else RealMachine()
    try:
        return _run(options, machine)
    except DeployError as exc:
        sys.stderr.write(f"xetserve deploy: {exc}\n")
        return 1


def _run(options: argparse.Namespace, machine: Machine) -> int:
    target, reasons = _choose(options, machine)
    if options.action == "status":
        state = target.get_status()
        if options.json:
            write_output(json.dumps(state) + "\n")
        else:
            write_output("".join(f"{name}: {value}\n" for name, value in state.items()))
        return 0 if state["ready"].startswith("yes") else 1
    if options.action == "logs":
        try:
            lines = parse_count(options.lines)
        except ValueError as exc:
            raise ConfigError(f"--lines {exc}") from None
        command = target.log_command(follow=options.follow, lines=lines)
        os.execvp(command[0], command)
    plan = _make_plan(options, target)
    if options.action == "plan":
        for reason in reasons:
            _print(f"# for another machine, since here {reason}")
        _show(plan)
        return 0
    if not plan.steps and not plan.after:
        _print("nothing to change")
        return 0
    if os.geteuid() != 0 and isinstance(target, SystemdTarget):
        raise DeployError("only root can change a systemd service: use sudo")
    carry_out(plan, machine, _print)
    _print(_DONE[options.action] if options.action != "remove" or not options.purge else "removed")
    return 0


_DONE: Final = {
    "apply": "done: the service is ready",
    "rollback": "done: the service is ready with the previous version",
    "remove": "removed; --purge also removes configuration and cache",
}


def _choose(
    options: argparse.Namespace, machine: Machine
) -> tuple[SystemdTarget | ContainerTarget, list[str]]:
    """Return the requested target, or the first one that this machine has.

    A plan needs none that works here. If none does, the reasons come with the target.

    Raises:
        DeployError: the target does not work on this machine; the message names the reasons.
    """
    reasons = []
    for name in (options.target,) if options.target else TARGETS:
        reason = find_systemd(machine) if name == "systemd" else find_engine(machine, name)
        if reason is None:
            return _make_target(name, options, machine), []
        reasons.append(reason)
    if options.action == "plan":
        return _make_target(options.target or TARGETS[0], options, machine), reasons
    raise DeployError(f"no target works on this machine: {'; '.join(reasons)}")


def _make_target(
    name: str, options: argparse.Namespace, machine: Machine
) -> SystemdTarget | ContainerTarget:
    try:
        timeout = parse_seconds(getattr(options, "timeout", DEFAULT_TIMEOUT))
    except ValueError as exc:
        raise ConfigError(f"--timeout {exc}") from None
    template = make_toml_template().encode()
    if name == "systemd":
        python = getattr(options, "python", sys.executable)
        return SystemdTarget(
            machine,
            template=template,
            python=python,
            timeout=timeout,
            find_speech=find_speech,
        )
    shape = Shape(
        name=options.name,
        config_folder=Path(options.config_dir).absolute(),
        publish=options.publish,
        network=getattr(options, "network", None),
        memory=getattr(options, "memory", DEFAULT_MEMORY),
        image=getattr(options, "image", ""),
        build_arguments=tuple(getattr(options, "build_arg", ())),
    )
    return ContainerTarget(
        machine,
        name,
        shape,
        template=template,
        env_template=make_env_template().encode(),
        timeout=timeout,
    )


def _make_plan(options: argparse.Namespace, target: SystemdTarget | ContainerTarget) -> Plan:
    if options.action == "rollback":
        return target.plan_rollback()
    if options.action == "remove":
        return target.plan_remove(purge=options.purge)
    source = Path(options.source) if options.source else None
    if isinstance(target, SystemdTarget):
        package = read_own_package(Paths().versions) if source is None else read_package(source)
        return target.plan_apply(package)
    if options.image and source is not None:
        raise ConfigError("--image and --from exclude each other: give only one")
    if source is None and not options.image:
        source = find_clone()
        if source is None:
            raise DeployError(
                "an image is built from a source folder, and this xetserve runs from an installed "
                "package: name a clone (--from DIR) or an image (--image NAME)"
            )
    return target.plan_apply(None if source is None else read_package(source))


def _show(plan: Plan) -> None:
    if not plan.steps and not plan.after:
        _print("nothing to change")
        return
    for number, step in enumerate(plan.steps):
        if number == plan.switch and plan.undo:
            _print("# the next steps interrupt clients; if one fails, deploy runs:")
            for back in plan.undo:
                _print(f"#   {back.describe()}")
        _print(step.describe())
    for step in plan.after:
        _print(step.describe())


def _print(line: str) -> None:
    write_output(f"{line}\n")
