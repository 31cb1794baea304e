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


def panels() -> list[dict[str, Any]]:
    """Return the panels without the rows, which are only headings."""
    return [panel for panel in load_dashboard()["panels"] if panel["type"] != "row"]


def on_panels() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def expressions() -> list[str]:
    notes = [note["expr"] for note in load_dashboard()["annotations"]["list"]]
    return on_panels() + notes + [rule["expr"] for rule in load_rules()]


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
    for panel in panels():
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


def test_every_family_of_metrics_is_on_a_panel() -> None:
    names = set(re.findall(r"\b(?:xetserve|process)_\w+", " ".join(on_panels())))
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}
    assert {each.name for each in REGISTRY.instruments} - shown == set()


def test_every_panel_says_what_it_shows() -> None:
    for panel in panels():
        assert panel["description"].endswith("."), panel["title"]


def test_the_table_has_a_name_for_each_column() -> None:
    (table,) = [panel for panel in panels() if panel["type"] == "table"]
    assert all(target["format"] == "table" and target["instant"] for target in table["targets"])
    (organize,) = [each["options"] for each in table["transformations"] if each["id"] == "organize"]
    names = {f"Value #{target['refId']}" for target in table["targets"]}
    labels = {
        label
        for target in table["targets"]
        for by in re.findall(r"by \(([^)]*)\)", target["expr"])
        for label in by.split(", ")
    }
    assert names | labels == set(organize["renameByName"]) | set(organize["excludeByName"]) - {
        "Time"
    }
    titles = set(organize["renameByName"].values())
    used = {each["matcher"]["options"] for each in table["fieldConfig"]["overrides"]}
    assert used <= titles


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
