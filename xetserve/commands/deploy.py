"""`xetserve deploy`: install, upgrade, check, roll back or remove the service on this machine.

systemd, Docker or Podman runs the service.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Final

from xetserve.config.parsers import parse_count, parse_seconds
from xetserve.config.template import make_env_template, make_toml_template
from xetserve.deploy.containers import ENGINES, ContainerTarget, Shape, find_engine
from xetserve.deploy.machine import DeployError, Machine, RealMachine
from xetserve.deploy.package import read_package
from xetserve.deploy.steps import Plan, carry_out
from xetserve.deploy.systemd import SystemdTarget, find_systemd
from xetserve.errors import ConfigError

TARGETS: Final = ("systemd", *ENGINES)
DEFAULT_LINES: Final = "100"
DEFAULT_TIMEOUT: Final = "30"
DEFAULT_MEMORY: Final = "512m"


def add_flags_of_deploy(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands to the command's parser."""
    actions = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, text in (
        ("plan", "print the steps of apply without running them"),
        ("apply", "install or upgrade, start and check the service; on failure, roll back"),
        ("status", "print the running version and whether the service is ready"),
        ("logs", "print the service's log"),
        ("rollback", "return to the previous version"),
        ("remove", "remove the service; keep configuration and cache unless --purge is given"),
    ):
        action = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        action.set_defaults(action=name)
        action.add_argument(
            "--target", choices=TARGETS, help="default: the first one that this machine has"
        )
        engines = action.add_argument_group("docker and podman")
        engines.add_argument(
            "--name", default="xetserve", help="name of the container; default: xetserve"
        )
        engines.add_argument(
            "--config-dir",
            metavar="DIR",
            default="/etc/xetserve",
            help="configuration folder; default: /etc/xetserve",
        )
        engines.add_argument(
            "--publish",
            metavar="[ADDRESS:]PORT",
            default="8080",
            help="address and port on this machine for clients; default: 8080",
        )
        if name in ("plan", "apply", "rollback"):
            action.add_argument(
                "--timeout",
                metavar="SECONDS",
                default=DEFAULT_TIMEOUT,
                help="time limit for a start; default: 30",
            )
        if name in ("plan", "apply"):
            action.add_argument(
                "--from",
                dest="source",
                metavar="PATH",
                help="wheel, sdist or source folder to install (docker, podman: a folder); "
                "default: the running version",
            )
            action.add_argument(
                "--python",
                default=sys.executable,
                help="systemd: interpreter for the environment; default: this one",
            )
            engines.add_argument(
                "--image", default="", help="use this image instead of building one"
            )
            engines.add_argument(
                "--network", help="network of the container; host publishes no port"
            )
            engines.add_argument(
                "--memory", default=DEFAULT_MEMORY, help="memory limit; default: 512m"
            )
            engines.add_argument(
                "--build-arg",
                action="append",
                default=[],
                metavar="NAME=VALUE",
                help="argument for the image build; may be repeated",
            )
        if name == "remove":
            action.add_argument(
                "--purge", action="store_true", help="also remove configuration and cache"
            )
        if name == "logs":
            action.add_argument("--follow", action="store_true", help="wait for new lines")
            action.add_argument(
                "--lines", metavar="N", default=DEFAULT_LINES, help="print the last N; default: 100"
            )
        if name == "status":
            action.add_argument("--json", action="store_true", help="print the result as JSON")


def run_deploy(options: argparse.Namespace) -> int:
    """Run the subcommand; return the exit status: 0, or 1 if it failed.

    Raises:
        ConfigError: an argument is invalid.
    """
    machine = RealMachine()
    try:
        return _run(options, machine)
    except DeployError as exc:
        sys.stderr.write(f"xetserve deploy: {exc}\n")
        return 1


def _run(options: argparse.Namespace, machine: Machine) -> int:
    target = _choose(options, machine)
    if options.action == "status":
        state = target.get_status()
        if options.json:
            sys.stdout.write(json.dumps(state) + "\n")
        else:
            sys.stdout.writelines(f"{name}: {value}\n" for name, value in state.items())
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


def _choose(options: argparse.Namespace, machine: Machine) -> SystemdTarget | ContainerTarget:
    """Return the requested target, or the first one that this machine has.

    Raises:
        DeployError: the target does not work on this machine; the message names the reasons.
    """
    reasons = []
    for name in (options.target,) if options.target else TARGETS:
        reason = find_systemd(machine) if name == "systemd" else find_engine(machine, name)
        if reason is None:
            return _make_target(name, options, machine)
        reasons.append(reason)
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
        return SystemdTarget(machine, template=template, python=python, timeout=timeout)
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
        return target.plan_apply(read_package(source))
    if options.image and source is not None:
        raise ConfigError("--image and --from exclude each other: give only one")
    if source is None and not options.image:
        source = Path(__file__).parents[2]  # the clone that this command runs from
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
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
