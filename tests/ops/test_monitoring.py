"""The dashboard and the alerts ask for what there is."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import xetserve.ops
from xetserve.metrics.catalogue import REGISTRY
from xetserve.metrics.instruments import Histogram

FOLDER = Path(xetserve.ops.__file__).parents[1] / "share/monitoring"
LABELS = {
    name + suffix: {*each.labels, *(["le"] if suffix == "_bucket" else [])}
    for each in REGISTRY.instruments
    for name in [each.name]
    for suffix in (("_bucket", "_sum", "_count") if isinstance(each, Histogram) else ("",))
}
ADDED = {"job", "instance"}  # by Prometheus


def load_dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text())
    return found


def load_rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def expressions() -> list[str]:
    panels = load_dashboard()["panels"]
    found = [target["expr"] for panel in panels for target in panel["targets"]]
    return found + [rule["expr"] for rule in load_rules()]


@pytest.mark.parametrize("text", expressions())
def test_an_expression_asks_for_metrics_that_there_are(text: str) -> None:
    names = set(re.findall(r"\b(?:xetserve|process)_\w+", re.sub(r'"[^"]*"', "", text)))
    assert names <= set(LABELS)
    assert names or "up{" in text
    known = ADDED.union(*(LABELS[name] for name in names))
    used = {label.strip() for by in re.findall(r"by \(([^)]*)\)", text) for label in by.split(",")}
    matched = set(re.findall(r"(\w+)(?:=~|!~|!=|=)\"", text))
    assert used | matched <= known
    assert text.count("(") == text.count(")")


@pytest.mark.parametrize("text", expressions())
def test_counters_are_asked_for_their_rate_and_gauges_are_not(text: str) -> None:
    for call, name in re.findall(r"(\w*)\(?\b((?:xetserve|process)_\w+)", text):
        is_counter = name.endswith(("_total", "_bucket", "_sum", "_count"))
        assert (call in ("rate", "increase")) is is_counter, text


def test_legends_name_labels_that_are_left() -> None:
    for panel in load_dashboard()["panels"]:
        for target in panel["targets"]:
            left = {
                x for by in re.findall(r"by \(([^)]*)\)", target["expr"]) for x in by.split(", ")
            }
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= left


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    panels = load_dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_alerts_say_how_bad_it_is_and_what_to_look_at() -> None:
    rules = load_rules()
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert set(rule["annotations"]) == {"summary", "description"}


def test_everything_that_matters_is_on_the_dashboard() -> None:
    text = " ".join(expressions())
    missing = {name for name in LABELS if name not in text}
    assert missing == {
        "xetserve_draining", "xetserve_cache_stored_bytes_total",
        "xetserve_cache_proven_bytes_total",
        "xetserve_cache_evictions_total",
        "xetserve_cache_unproven_entries", "xetserve_cache_abandoned_total",
        "xetserve_proofs_total",
        "xetserve_upstream_last_answer_timestamp_seconds",
        "xetserve_first_byte_seconds_sum", "xetserve_first_byte_seconds_count",
        "xetserve_request_duration_seconds_sum", "xetserve_request_duration_seconds_count",
        "process_start_time_seconds", "xetserve_config_info",
        "xetserve_config_last_reload_timestamp_seconds",
        "xetserve_loop_lag_seconds_sum",
    }  # fmt: skip


# The chapter


CHAPTER = (Path(xetserve.ops.__file__).parents[1] / "docs" / "monitoring.md").read_text("utf-8")


def test_the_chapter_names_every_metric() -> None:
    whole: set[str] = set()
    shortened: set[str] = set()
    for row in re.findall(r"^\| (`(?:xetserve|process)_.*?) \| ", CHAPTER, re.MULTILINE):
        names = re.findall(r"`((?:xetserve|process)_\w+)", row)
        whole.update(names)
        starts = {name[: at.start()] for name in names for at in re.finditer("_", name)}
        shortened |= {start + end for start in starts for end in re.findall(r"`…(\w+)", row)}
    there = {each.name for each in REGISTRY.instruments}
    assert whole <= there
    assert there <= whole | shortened


def test_the_chapter_names_every_alert() -> None:
    named = re.findall(r"^\| `(Xetserve\w+)` \|", CHAPTER, re.MULTILINE)
    assert named == [rule["alert"] for rule in load_rules()]
