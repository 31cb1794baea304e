"""What `xetserve deploy` says when it is done: for people on lines, for programs as JSON."""

import json
import shlex
import sys
from typing import Any

from xetserve.commands.output import write_output
from xetserve.deploy.containers import ContainerTarget
from xetserve.deploy.local_server import Answer
from xetserve.deploy.steps import YES, Plan, describe_ready
from xetserve.deploy.systemd import SystemdTarget

LOG_LINES = 100


class Report:
    """Progress and outcome of an action.

    Args:
        as_json: print the outcome as one line of JSON; progress then goes to the standard error.
    """

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json

    def say(self, line: str) -> None:
        """Print a line about the progress."""
        if self._as_json:
            sys.stderr.write(f"{line}\n")
        else:
            write_output(f"{line}\n")

    def finish(
        self,
        sentence: str,
        plan: Plan,
        target: SystemdTarget | ContainerTarget,
        answer: Answer | None = None,
    ) -> None:
        """Print the outcome.

        Args:
            answer: of /ready, if the service runs now.
        """
        logs = shlex.join(target.log_command(follow=True, lines=LOG_LINES))
        if self._as_json:
            outcome: dict[str, Any] = {
                "changed": bool(plan.steps),
                "message": sentence,
                "notes": plan.notes,
                "steps": [step.describe() for step in (*plan.steps, *plan.after)],
            }
            if answer is not None:
                outcome |= {"ready": describe_ready(answer), "url": answer.url}
                outcome |= {"settings": str(target.settings), "logs": logs}
            write_output(json.dumps(outcome) + "\n")
            return
        self.say(sentence)
        if answer is not None:
            self.say(f"  URL       {answer.url}")
            self.say(f"  settings  {target.settings}; after a change: {target.command}")
            self.say(f"  logs      {logs}")


def describe_outcome(sentence: str, before: Answer | None, after: Answer | None) -> str:
    """Return the sentence, with what keeps the service from being ready without reserve.

    A degraded service counts as ready: it serves, and the cause is the Hub or a disk.

    Args:
        before, after: of /ready, before and after the change.
    """
    if after is None or describe_ready(after) == YES:
        return sentence
    cause = after.fields.get("cause")
    was = f", as before ({cause})" if _get_cause(before) == cause else f" ({cause})"
    if before is not None and _get_cause(before) != cause:
        was += ", and was not before"
    return f"{sentence}, but degraded{was}. This does not count against the version that runs"


def _get_cause(answer: Answer | None) -> object:
    return None if answer is None else answer.fields.get("cause")
