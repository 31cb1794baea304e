"""`xetserve deploy`: install, upgrade, check, roll back or remove the service on this machine.

systemd, Docker or Podman runs the service.
"""

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from xetserve.commands.arguments import DEFAULT_TIMEOUT, DEPLOYED, TARGETS
from xetserve.commands.certificates import add_certificates
from xetserve.commands.deploy_report import Report, describe_outcome
from xetserve.commands.output import write_output
from xetserve.commands.service_settings import find_speech, summarize_settings
from xetserve.config.parsers import parse_count, parse_seconds
from xetserve.config.template import make_env_template, make_toml_template
from xetserve.deploy.container_shape import Shape, find_engine, find_flags
from xetserve.deploy.containers import ContainerTarget
from xetserve.deploy.machine import DeployError, Machine, PlanningMachine, RealMachine
from xetserve.deploy.package import find_clone, read_own_package, read_package
from xetserve.deploy.steps import Plan, carry_out
from xetserve.deploy.systemd import Paths, SystemdTarget, find_systemd, is_deployed
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
        if getattr(options, "json", False):
            write_output(json.dumps({"error": str(exc)}) + "\n")
        return 1


def _run(options: argparse.Namespace, machine: Machine) -> int:
    target, notes = choose_target(options, machine)
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
    plan = make_plan(options, target)
    add_certificates(options, machine, target, plan)
    report = Report(as_json=options.json)
    plan.notes = [*notes, *plan.notes]
    for note in plan.notes:
        report.say(f"# {note}")
    is_empty = not plan.steps
    if options.action == "plan":
        if is_empty or options.json:
            report.finish(_NOTHING if is_empty else "planned", plan, target)
        else:
            _show(plan)
        return 0
    is_to_run = options.action != "remove"
    if is_empty:
        carry_out(plan, machine, lambda _: None)  # it may record which settings are in use
        report.finish(_NOTHING, plan, target, target.ask_ready() if options.json else None)
        return 0
    if os.geteuid() != 0 and isinstance(target, SystemdTarget):
        raise DeployError("only root can change a systemd service: use sudo")
    before = target.ask_ready() if is_to_run else None
    carry_out(plan, machine, report.say)
    sentence = "removed" if options.action == "remove" and options.purge else _DONE[options.action]
    after = target.ask_ready() if is_to_run else None
    report.finish(describe_outcome(sentence, before, after), plan, target, after)
    return 0


_NOTHING: Final = "nothing to change"
_DONE: Final = {
    "apply": "done: the service is ready",
    "rollback": "done: the service is ready with the previous version",
    "remove": "removed; --purge also removes configuration and cache",
}


# Flag for containers -> the property of Shape that it sets. An upgrade keeps what it does not set.
_KEPT: Final = {
    "--publish": "publish",
    "--network": "network",
    "--memory": "memory",
    "--config-dir": "config_folder",
    "--build-arg": "build_arguments",
}


def choose_target(
    options: argparse.Namespace, machine: Machine
) -> tuple[SystemdTarget | ContainerTarget, list[str]]:
    """Return the requested target, or the one that has the service, or the first that works here.

    With it come notes for those who look at the plan. A plan needs no target that works here.

    Raises:
        DeployError: no target works on this machine, or several have the service.
    """
    reasons, working = [], []
    for name in (options.target,) if options.target else TARGETS:
        reason = find_systemd(machine) if name == "systemd" else find_engine(machine, name)
        if reason is None:
            working.append(name)
        else:
            reasons.append(reason)
    if not working and options.action == "plan":
        notes = [f"for another machine, since here {reason}" for reason in reasons]
        return _make_target(options.target or TARGETS[0], options, machine, notes), notes
    if not working:
        raise DeployError(f"no target works on this machine: {'; '.join(reasons)}")
    having = working
    if len(working) > 1:
        container = options.name or DEPLOYED
        having = [
            name
            for name in working
            if (
                is_deployed(machine)
                if name == "systemd"
                else find_flags(machine, name, container) is not None
            )
        ]
    if len(having) > 1:
        raise DeployError(
            f"{' and '.join(having)} have a service each: name the one that is meant (--target)"
        )
    name, notes = (having or working)[0], list[str]()
    if name == "podman" and options.action != "plan" and os.geteuid() != 0:
        raise DeployError(
            "only root can deploy with podman: use sudo. A container of another user would end "
            "with the session, and could not read its settings"
        )
    return _make_target(name, options, machine, notes), notes


def _make_target(
    name: str, options: argparse.Namespace, machine: Machine, notes: list[str]
) -> SystemdTarget | ContainerTarget:
    """Make a target; append a note for each property of the service that flags change."""
    try:
        timeout = parse_seconds(getattr(options, "timeout", DEFAULT_TIMEOUT))
    except ValueError as exc:
        raise ConfigError(f"--timeout {exc}") from None
    template = make_toml_template().encode()
    given = _get_flags(options)
    if name == "systemd":
        others = [
            f"--{each}" for each in ("name", "image", "rebuild") if getattr(options, each, None)
        ]
        for flag in (*given, *others):
            raise ConfigError(
                f"{flag} is for containers: give --target docker or podman. Where a systemd "
                "service listens is in its socket (`systemctl edit xetserve.socket`)"
            )
        python = getattr(options, "python", sys.executable)
        return SystemdTarget(
            machine,
            template=template,
            python=python,
            timeout=timeout,
            find_speech=find_speech,
            summarize=summarize_settings,
        )
    container = options.name or DEPLOYED
    kept = find_flags(machine, name, container)
    if kept == {} and options.action in ("plan", "apply") and not options.publish:
        raise DeployError(
            f"the container {container} was deployed by a version that did not record its flags: "
            "give --publish once more, and the others that are not the default"
        )
    shape = Shape(name=container, image=getattr(options, "image", None) or "", **(kept or {}))
    shape = replace(shape, is_new=getattr(options, "rebuild", False))
    wanted = replace(shape, **{_KEPT[flag]: value for flag, value in given.items()})
    if kept:
        notes += [
            f"{flag} changes: {_show_value(before)} -> {_show_value(value)}"
            for flag, value in given.items()
            if value != (before := getattr(shape, _KEPT[flag]))
        ]
    return ContainerTarget(
        machine,
        name,
        wanted,
        template=template,
        env_template=make_env_template().encode(),
        timeout=timeout,
        summarize=summarize_settings,
        gets_pair=bool(getattr(options, "tls_cert", None)),
    )


def _get_flags(options: argparse.Namespace) -> dict[str, Any]:
    """Return the flags of _KEPT that were given, with the values for the properties."""
    given = {
        flag: value
        for flag in _KEPT
        if (value := getattr(options, flag[2:].replace("-", "_"), None)) is not None
    }
    if "--config-dir" in given:
        given["--config-dir"] = Path(given["--config-dir"]).absolute()
    if "--build-arg" in given:
        given["--build-arg"] = tuple(given["--build-arg"])
    if given.get("--network") == "default":
        given["--network"] = None
    return given


def _show_value(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(value) or "none"
    return "default" if value is None else str(value)


def make_plan(options: argparse.Namespace, target: SystemdTarget | ContainerTarget) -> Plan:
    """Return the plan of an action that changes something.

    Raises:
        ConfigError: flags exclude each other.
        DeployError: the action is not possible.
    """
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
        if source is None and (plan := target.plan_same_image()) is not None:
            return plan
        if source is None:
            raise DeployError(
                "an image is built from a source folder, and this xetserve runs from an installed "
                "package: name a clone (--from DIR) or an image (--image NAME)"
            )
    return target.plan_apply(None if source is None else read_package(source))


def _show(plan: Plan) -> None:
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
