"""The chart: draw the results as an SVG with panels of bars.

A bar shows the median, and a line runs from minimum to maximum. The colours follow the reader's
light or dark mode.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from bench import fleet, growth, throughput
from bench.results import Figure, Results
from bench.table import format_number

WIDTH = 960
MARGIN = 24
GUTTER = 36
ROW = 20  # height of a bar with its margins
BAR = 13
LABEL_WIDTH = 136
VALUE_WIDTH = 52
PANEL_HEAD = 46
PANEL_WIDTH = (WIDTH - 2 * MARGIN - GUTTER) // 2

PEERS = {
    "xetserve": "ours",
    "hf-xet": "peer",
    "nginx proxy_pass": "bridge",
    "nginx": "ceiling",
}
LEGEND = {
    "ours": "xetserve → curl, every chunk verified",
    "peer": "hf-xet → tmpfs",
    "bridge": "nginx proxy_pass of the Hub's bridge → curl",
    "ceiling": "nginx, the plain file → curl",
}

STYLE = """\
  svg { --ground: #ffffff; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0;
        --ours: #0969da; --peer: #bc4c00; --bridge: #8c959f; --ceiling: #afb8c1; }
  @media (prefers-color-scheme: dark) {
    svg { --ground: #0d1117; --ink: #f0f6fc; --soft: #9198a1; --line: #3d444d;
          --ours: #4493f8; --peer: #db6d28; --bridge: #656c76; --ceiling: #484f58; } }
  text { font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; fill: var(--ink); }
  .title { font-weight: 600; font-size: 14px; } .soft { fill: var(--soft); }
  .ground { fill: var(--ground); } .axis { stroke: var(--line); }
  .spread { stroke: var(--ink); stroke-width: 1.2; }
  .ours { fill: var(--ours); } .peer { fill: var(--peer); }
  .bridge { fill: var(--bridge); } .ceiling { fill: var(--ceiling); }
"""


@dataclass(frozen=True, slots=True)
class Bar:
    """A row of a panel."""

    label: str
    series: str
    figure: Figure


@dataclass(frozen=True, slots=True)
class Panel:
    """A set of bars with one scale; empty groups are not drawn."""

    title: str
    subtitle: str
    groups: Sequence[Sequence[Bar]]

    @property
    def height(self) -> int:
        """Return the height in pixels, with the space below."""
        rows = sum(len(group) for group in self.groups)
        return PANEL_HEAD + rows * ROW + len(self.groups) * 8 + 16


def make_chart(results: Results) -> str:
    """Return the SVG document; panels without figures are not drawn."""
    panels = [panel for panel in _make_panels(results) if panel.groups]
    bottoms = [_legend_height(), _legend_height()]
    parts = []
    for panel in panels:
        column = bottoms.index(min(bottoms))
        left = MARGIN + column * (PANEL_WIDTH + GUTTER)
        parts += _draw_panel(panel, left, bottoms[column])
        bottoms[column] += panel.height
    height = max(bottoms) + 20
    note = escape(str(results.about.get("summary", "")))
    return "\n".join(
        [
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
                f'width="{WIDTH}" height="{height}" role="img" aria-label="Benchmark of xetserve">'
            ),
            f"<style>\n{STYLE}</style>",
            f'<rect class="ground" width="{WIDTH}" height="{height}" rx="6"/>',
            *_draw_legend(),
            *parts,
            f'<text class="soft" x="{MARGIN}" y="{height - 14}">{note}</text>',
            "</svg>\n",
        ]
    )


def _make_panels(results: Results) -> Iterable[Panel]:
    kinds = list(throughput.CPU_GOALS)

    def by_kind(suffix: str, peers: Iterable[str]) -> list[list[Bar]]:
        groups = []
        for kind in kinds:
            found = ((peer, _find(results, f"{kind}: {peer}{suffix}")) for peer in peers)
            groups.append([Bar(f"{kind}: {p}", PEERS[p], f) for p, f in found if f is not None])
        return [group for group in groups if group]

    yield Panel("Throughput", "MB/s, one client, cold; more is better", by_kind("", PEERS))
    both = ("xetserve", "hf-xet")
    yield Panel(
        "CPU", "seconds per GB delivered, process alone; less is better", by_kind(", CPU", both)
    )
    yield Panel(
        "Peak memory, one client", "MiB resident; less is better", by_kind(", peak memory", both)
    )
    fast = [f"{count} fast client{'s' if count > 1 else ''}" for count, _ in fleet.FAST]
    slow = [f"{count} slow clients" for count in fleet.SLOW]
    clients = [[_bar(results, who) for who in group] for group in (fast, slow)]
    yield Panel(
        "Peak memory by number of clients",
        "MiB resident; budget 128 MiB; slow: 64 KiB/s each",
        [group for found in clients if (group := [bar for bar in found if bar is not None])],
    )
    peaks = [f for f in results.in_section(growth.SECTION) if f.name.endswith(": peak memory")]
    bars = [Bar(f.name.partition(":")[0], "ours", f) for f in peaks]
    yield Panel(
        "Peak memory by size of the file", "MiB resident, one client", [bars] if bars else []
    )


def _find(results: Results, name: str) -> Figure | None:
    return results.find(throughput.SECTION, name)


def _bar(results: Results, who: str) -> Bar | None:
    figure = results.find(fleet.SECTION, f"{who}: peak memory")
    return None if figure is None else Bar(who, "ours", figure)


def _legend_height() -> int:
    return MARGIN + 34 + len(LEGEND) // 2 * 20


def _draw_legend() -> Iterable[str]:
    for number, (series, text) in enumerate(LEGEND.items()):
        x = MARGIN + number % 2 * (PANEL_WIDTH + GUTTER)
        y = MARGIN + number // 2 * 20
        yield f'<rect class="{series}" x="{x}" y="{y}" width="12" height="12" rx="2"/>'
        yield f'<text x="{x + 20}" y="{y + 10}">{escape(text)}</text>'


def _draw_panel(panel: Panel, left: int, top: int) -> list[str]:
    """Return the elements of a panel with its corner at (left, top)."""
    highest = max(bar.figure.high for group in panel.groups for bar in group) or 1.0
    zero = left + LABEL_WIDTH
    scale = (PANEL_WIDTH - LABEL_WIDTH - VALUE_WIDTH) / highest
    y = top + PANEL_HEAD
    parts = [
        f'<text class="title" x="{left}" y="{top + 14}">{escape(panel.title)}</text>',
        f'<text class="soft" x="{left}" y="{top + 31}">{escape(panel.subtitle)}</text>',
    ]
    for group in panel.groups:
        start = y
        for bar in group:
            parts += _draw_bar(bar, zero, y, scale)
            y += ROW
        parts.append(f'<path class="axis" d="M{zero} {start - 2}V{y - 3}"/>')
        y += 8
    return parts


def _draw_bar(bar: Bar, zero: int, y: int, scale: float) -> Iterable[str]:
    figure = bar.figure
    middle = y + BAR / 2
    label, value = escape(bar.label), format_number(figure.median)
    width, low, high = (size * scale for size in (figure.median, figure.low, figure.high))
    yield f'<text x="{zero - 8}" y="{y + 11}" text-anchor="end">{label}</text>'
    yield (
        f'<rect class="{bar.series}" x="{zero}" y="{y}" '
        f'width="{width:.1f}" height="{BAR}" rx="1.5"/>'
    )
    if len(figure.values) > 1:
        yield f'<path class="spread" d="M{zero + low:.1f} {middle}H{zero + high:.1f}"/>'
    yield f'<text x="{zero + max(width, high) + 6:.1f}" y="{y + 11}">{value}</text>'
