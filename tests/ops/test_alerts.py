"""The alerts on series as Prometheus would have them: promtool evaluates the rules.

Each alert has a case in which it fires and one, as close as it can be, in which it does not.
"""

import subprocess
from pathlib import Path
from typing import Final, NamedTuple

import pytest
import yaml

import xetserve.ops
from tests.conftest import need_program

RULES = Path(xetserve.ops.__file__).parents[1] / "share/monitoring/alerts.yml"
JOB: Final = 'job="xetserve", instance="a"'


class Case(NamedTuple):
    """Series, with a sample each minute in promtool's notation, and whether the alert fires.

    minutes: time at which it fires, or does not.
    """

    alert: str
    fires: bool
    minutes: int
    series: dict[str, str]


def requests(route: str, status: int, values: str) -> dict[str, str]:
    labels = f'{JOB}, route="{route}", status="{status}"'
    return {f"xetserve_requests_total{{{labels}}}": values}


def of_job(name: str, values: str, labels: str = "") -> dict[str, str]:
    return {f"{name}{{{JOB}{labels and ', '}{labels}}}": values}


def first_bytes(slow: int) -> dict[str, str]:
    """100 first bytes a minute, some of them after more than five seconds."""
    values = {"5.0": 100 - slow, "10.0": 100, "+Inf": 100}
    return {
        f'xetserve_first_byte_seconds_bucket{{{JOB}, route="resolve", le="{le}"}}': f"0+{number}x60"
        for le, number in values.items()
    }


PROBES: Final = {**requests("ready", 200, "0+600x60"), **requests("metrics", 200, "0+4x60")}
CASES: Final = [
    Case("XetserveDown", True, 2, of_job("up", "0x10")),
    Case("XetserveDown", False, 10, of_job("up", "1x4 0 1x10")),
    Case("XetserveAbsent", True, 6, {'up{job="other"}': "1x10"}),
    Case("XetserveAbsent", False, 6, of_job("up", "0x10")),
    Case(
        "XetserveIntegrityFailure", True, 5, of_job("xetserve_integrity_failures_total", "0 0 1x9")
    ),
    Case("XetserveIntegrityFailure", False, 5, of_job("xetserve_integrity_failures_total", "3x9")),
    Case("XetserveNativeSpread", True, 45, of_job("xetserve_strange_grants_total", "0+1x60")),
    Case("XetserveNativeSpread", False, 45, of_job("xetserve_strange_grants_total", "0 5x60")),
    # All users fail, beside a balancer that asks for /ready ten times a second.
    Case("XetserveErrors", True, 12, {**PROBES, **requests("resolve", 502, "0+2x60")}),
    Case(
        "XetserveErrors",
        False,
        12,
        {**PROBES, **requests("resolve", 502, "0+4x60"), **requests("resolve", 200, "0+96x60")},
    ),
    # A server that is not ready, and whose users are all served.
    Case(
        "XetserveErrors",
        False,
        12,
        {**requests("ready", 503, "0+600x60"), **requests("download", 200, "0+2x60")},
    ),
    Case(
        "XetserveUpstreamUnreachable",
        True,
        12,
        {
            **of_job("xetserve_upstream_requests_total", "0+10x60", 'upstream="hub"'),
            **of_job("xetserve_upstream_failures_total", "0+6x60", 'upstream="hub"'),
        },
    ),
    Case(
        "XetserveUpstreamUnreachable",
        False,
        12,
        {
            **of_job("xetserve_upstream_requests_total", "0+10x60", 'upstream="hub"'),
            **of_job("xetserve_upstream_failures_total", "0+4x60", 'upstream="hub"'),
        },
    ),
    Case("XetserveDegraded", True, 12, of_job("xetserve_degraded", "0 1x60", 'cause="hub"')),
    Case(
        "XetserveDegraded",
        False,
        20,
        {
            **of_job("xetserve_degraded", "0 1x8 0 1x8 0x60", 'cause="hub"'),
            **of_job("xetserve_degraded", "1x60", 'cause="cache"'),
        },
    ),
    Case(
        "XetserveThrottled",
        True,
        20,
        of_job("xetserve_upstream_throttled_total", "0 0 1+1x60", 'upstream="hub"'),
    ),
    Case(
        "XetserveThrottled",
        False,
        20,
        of_job("xetserve_upstream_throttled_total", "0x5 9x60", 'upstream="hub"'),
    ),
    Case(
        "XetserveCutDownloads",
        True,
        25,
        {
            **PROBES,
            **requests("download", 200, "0+10x60"),
            **of_job("xetserve_cut_requests_total", "0+3x60", 'route="download"'),
        },
    ),
    Case(
        "XetserveCutDownloads",
        False,
        25,
        {
            **requests("ready", 200, "0+10x60"),
            **requests("download", 200, "0+10x60"),
            **of_job("xetserve_cut_requests_total", "0+1x60", 'route="download"'),
            **of_job("xetserve_cut_requests_total", "0+9x60", 'route="ready"'),
        },
    ),
    Case("XetserveSlowFirstByte", True, 25, first_bytes(slow=6)),
    Case("XetserveSlowFirstByte", False, 25, first_bytes(slow=4)),
    Case(
        "XetserveBudgetFull",
        True,
        16,
        {
            **of_job("xetserve_budget_held_bytes", "96x60"),
            **of_job("xetserve_budget_limit_bytes", "100x60"),
        },
    ),
    Case(
        "XetserveBudgetFull",
        False,
        16,
        {
            **of_job("xetserve_budget_held_bytes", "96x9 90 96x60"),
            **of_job("xetserve_budget_limit_bytes", "100x60"),
        },
    ),
    Case("XetserveCacheTrouble", True, 6, of_job("xetserve_cache_trouble", "1x60", 'cause="disk"')),
    Case(
        "XetserveCacheTrouble", False, 6, of_job("xetserve_cache_trouble", "0x60", 'cause="disk"')
    ),
    Case(
        "XetserveCacheDamaged",
        True,
        30,
        {
            **of_job("xetserve_cache_damaged_total", "0x60"),
            **of_job("xetserve_metadata_damaged_total", "0x9 1x60"),
        },
    ),
    Case(
        "XetserveCacheDamaged",
        False,
        30,
        {
            **of_job("xetserve_cache_damaged_total", "7x60"),
            **of_job("xetserve_metadata_damaged_total", "0x60"),
        },
    ),
    Case(
        "XetserveReloadFailed",
        True,
        5,
        of_job("xetserve_config_last_reload_successful", "1 1 0x60"),
    ),
    Case(
        "XetserveReloadFailed",
        False,
        5,
        of_job("xetserve_config_last_reload_successful", "0 0 1x60"),
    ),
    Case("XetserveUpgradeFailed", True, 5, of_job("xetserve_last_upgrade_successful", "1 1 0x60")),
    Case("XetserveUpgradeFailed", False, 5, of_job("xetserve_last_upgrade_successful", "0 1x60")),
    # The clock of these cases starts at 0: less than 7 days are left after 100 minutes.
    Case(
        "XetserveCertificateExpires",
        True,
        170,
        of_job("xetserve_tls_certificate_expiry_seconds", f"{7 * 86400 + 100 * 60}x200"),
    ),
    # A renewal that is a little late.
    Case(
        "XetserveCertificateExpires",
        False,
        170,
        of_job(
            "xetserve_tls_certificate_expiry_seconds",
            f"{7 * 86400 + 100 * 60}x150 {90 * 86400}x50",
        ),
    ),
    Case(
        "XetserveVersionSkew",
        True,
        65,
        {
            **of_job("xetserve_build_info", "1x90", 'version="1.0", python="3.11.2"'),
            'xetserve_build_info{job="xetserve", instance="b", version="1.1"}': "1x90",
        },
    ),
    # An upgrade that takes half an hour, with two versions of Python.
    Case(
        "XetserveVersionSkew",
        False,
        65,
        {
            **of_job("xetserve_build_info", "1x90", 'version="1.1", python="3.11.2"'),
            'xetserve_build_info{job="xetserve", instance="b", version="1.0"}': "1x30 stale",
            'xetserve_build_info{job="xetserve", instance="b", version="1.1"}': "_x30 1x60",
        },
    ),
    Case("XetserveRestarts", True, 10, of_job("xetserve_worker_restarts_total", "0 1 2 3x60")),
    Case("XetserveRestarts", False, 30, of_job("xetserve_worker_restarts_total", "0x12 1x60")),
    Case(
        "XetserveOpenFiles",
        True,
        6,
        {**of_job("process_open_fds", "86x60"), **of_job("process_max_fds", "100x60")},
    ),
    Case(
        "XetserveOpenFiles",
        False,
        6,
        {**of_job("process_open_fds", "84x60"), **of_job("process_max_fds", "100x60")},
    ),
    Case(
        "XetserveLoopHeldUp",
        True,
        5,
        {
            **of_job("xetserve_loop_lag_seconds_bucket", "0+599x60", 'le="1.0"'),
            **of_job("xetserve_loop_lag_seconds_count", "0+600x60"),
        },
    ),
    Case(
        "XetserveLoopHeldUp",
        False,
        5,
        {
            **of_job("xetserve_loop_lag_seconds_bucket", "0+600x60", 'le="1.0"'),
            **of_job("xetserve_loop_lag_seconds_count", "0+600x60"),
        },
    ),
]


def run_promtool(*arguments: str) -> None:
    done = subprocess.run(
        [need_program("promtool"), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_the_rules() -> None:
    run_promtool("check", "rules", str(RULES))


@pytest.mark.parametrize("fires", [True, False])
def test_every_alert_has_a_case(fires: bool) -> None:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    names = {rule["alert"] for rule in group["rules"]}
    assert names == {case.alert for case in CASES if case.fires is fires}


def test_alerts_fire_when_they_should(tmp_path: Path) -> None:
    def describe(case: Case) -> dict[str, object]:
        name = f'ALERTS{{alertname="{case.alert}", alertstate="firing"}}'
        return {
            "name": f"{case.alert} fires: {case.fires}",
            "interval": "1m",
            "input_series": [
                {"series": series, "values": values} for series, values in case.series.items()
            ],
            "promql_expr_test": [
                {
                    "expr": f"count({name}) or vector(0)",
                    "eval_time": f"{case.minutes}m",
                    "exp_samples": [{"labels": "{}", "value": int(case.fires)}],
                }
            ],
        }

    path = tmp_path / "cases.yml"
    content = {"rule_files": [str(RULES)], "tests": [describe(case) for case in CASES]}
    path.write_text(yaml.safe_dump(content))
    run_promtool("test", "rules", str(path))
