"""The page at /: the current activity of the server, and usage examples.

The server renders the whole page, so that it is complete without scripts. Strangers choose the
names of files and clients: every text that is not ours goes through escape().
"""

from collections.abc import Sequence
from html import escape
from typing import Any, Final

from xetserve import __version__
from xetserve.app.status.page_assets import SCRIPT, STYLE
from xetserve.app.status.usage import make_usage_html

REFRESH: Final = 10  # seconds, without scripts
MAX_STREAMS: Final = 50
_GRAPH_WIDTH: Final = 300  # samples: five minutes
_GRAPH_HEIGHT: Final = 100

_STAGES: Final = {"reading": "waits for data", "sending": "waits for its client"}
_TROUBLES: Final = {
    "disk": "keeps nothing: its folder cannot be written to",
    "full": "keeps nothing: there is no room",
    "small": "cache_size is too small for large pieces",
}
_ROUTES: Final = {
    "api": "an answer of the Hub's API",
    "raw": "a file of git's",
    "reconstruction": "a reconstruction",
    "xorb": "packed data for a native client",
}

_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<noscript><meta http-equiv="refresh" content="{refresh}"></noscript>
<link rel="icon" href="data:,">
<title>xetserve</title>
<style>{style}</style>
</head>
<body>
<main>
{live}
{usage}
</main>
<footer>
{footer}
</footer>
<script>{script}</script>
</body>
</html>
"""


def make_page(
    base_url: str,
    figures: dict[str, Any] | None,
    rates: Sequence[tuple[float, float]],
    *,
    is_operator: bool,
    may_log_in: bool,
    was_refused: bool = False,
) -> str:
    """Make the page.

    Args:
        figures: of Snapshot.describe; None: the client may not see them.
        rates: bytes per second, sent and fetched, for the graph.
        is_operator: show names and the button to log out.
        may_log_in: an operator token is set, so the form to log in is shown.
        was_refused: the client sent a wrong operator token.
    """
    if figures is None:
        live = f'<header><h1>xetserve {escape(__version__)}</h1></header>\n<div id="live"></div>'
    else:
        live = f'<div id="live">\n{_make_live(figures, rates, is_operator=is_operator)}\n</div>'
    return _PAGE.format(
        refresh=REFRESH,
        style=STYLE,
        script=SCRIPT,
        live=live,
        usage=make_usage_html(base_url),
        footer=_make_footer(
            is_operator=is_operator, may_log_in=may_log_in, was_refused=was_refused
        ),
    )


def format_size(size: float) -> str:
    """Format a number of bytes with decimal units, such as "1.5 MB"."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 999.5 or unit == "TB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" or size >= 99.5 else f"{size:.1f} {unit}"


def format_time(seconds: float) -> str:
    """Format a duration in seconds, such as "2 h 5 min"."""
    whole = int(seconds)
    days, hours, minutes = whole // 86400, whole % 86400 // 3600, whole % 3600 // 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


def _make_live(
    figures: dict[str, Any], rates: Sequence[tuple[float, float]], *, is_operator: bool
) -> str:
    state, workers = str(figures["state"]), figures["workers"]
    processes = "1 process" if workers == 1 else f"{workers} processes"
    return "\n".join(
        [
            f"<header><h1>xetserve {escape(__version__)}</h1>",
            f'<span class="state {escape(state)}">{escape(state)}</span>',
            f'<span class="soft">up {format_time(figures["uptime"])}, {processes}</span></header>',
            '<div class="cards">',
            _make_graph(figures, rates),
            _make_memory(figures["memory"]),
            _make_cache(figures["cache"]),
            *_make_counts(figures),
            _make_streams(figures["streams"], is_operator=is_operator),
            "</div>",
        ]
    )


def _make_card(label: str, big: str, *rest: str, kind: str = "") -> str:
    lines = "".join(f"{line}\n" for line in rest)
    return (
        f'<section class="card{kind}"><div class="label">{label}</div>\n'
        f'<div class="big">{big}</div>\n{lines}</section>'
    )


def _make_graph(figures: dict[str, Any], rates: Sequence[tuple[float, float]]) -> str:
    top = max(1.0, *(max(pair) for pair in rates))
    rates = rates[-_GRAPH_WIDTH - 1 :]
    first = _GRAPH_WIDTH - len(rates) + 1

    def height(rate: float) -> float:
        return _GRAPH_HEIGHT - max(0.0, rate) / top * (_GRAPH_HEIGHT - 2)

    def points(which: int) -> str:
        return " ".join(
            f"{first + number},{height(pair[which]):.1f}" for number, pair in enumerate(rates)
        )

    sent = points(0)
    graph = (
        f'<svg viewBox="0 0 {_GRAPH_WIDTH} {_GRAPH_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="bytes a second, the last five minutes, at most {format_size(top)}">'
        f'<line class="base" x1="0" y1="{_GRAPH_HEIGHT}" x2="{_GRAPH_WIDTH}" y2="{_GRAPH_HEIGHT}"/>'
        f'<polygon class="area" points="{first},{_GRAPH_HEIGHT} {sent} '
        f'{_GRAPH_WIDTH},{_GRAPH_HEIGHT}"/>'
        f'<polyline class="line second" points="{points(1)}"/>'
        f'<polyline class="line" points="{sent}"/></svg>'
    )
    received = sum(figures["upstream"]["bytes"].values())
    legend = (
        '<div class="row soft"><span><span class="key"></span>to clients, '
        f"{format_size(figures['sent_bytes'])} in all</span>"
        f"<span>5 min, peak {format_size(top)}/s</span></div>"
        '<div class="row soft"><span><span class="key second"></span>packed data in, '
        f"{format_size(figures['fetched_rate'])}/s</span>"
        f"<span>{format_size(received)} from upstream</span></div>"
    )
    big = f"{format_size(figures['sent_rate'])}/s"
    return _make_card("Sending", big, graph, legend, kind=" wide")


def _make_bar(value: float, limit: float, label: str) -> str:
    kind = ' class="full"' if limit and value > limit * 0.95 else ""
    return (
        f'<progress{kind} max="{max(1, int(limit))}" value="{int(value)}" '
        f'aria-label="{label}"></progress>'
    )


def _make_memory(memory: dict[str, int]) -> str:
    held, limit = memory["budget_held"], memory["budget_limit"]
    return _make_card(
        "File data held",
        format_size(held),
        _make_bar(held, limit, "memory budget"),
        f'<div class="soft">of {format_size(limit)} budget</div>',
        f'<div class="soft">{format_size(memory["resident"])} resident</div>',
    )


def _make_cache(cache: dict[str, Any] | None) -> str:
    if cache is None:
        return _make_card("Disk cache", "off", '<div class="soft">no cache_dir is set</div>')
    looked = cache["hits"] + cache["misses"]
    share = f"{cache['hits'] / looked:.0%} hits, " if looked else ""
    return _make_card(
        "Disk cache",
        format_size(cache["size"]),
        _make_bar(cache["size"], cache["limit"], "disk cache"),
        f'<div class="soft">of {format_size(cache["limit"])}</div>',
        f'<div class="soft">{share}{format_size(cache["bytes"])} given</div>',
        *(f'<div class="bad">{_TROUBLES[cause]}</div>' for cause in cache["trouble"]),
    )


def _make_counts(figures: dict[str, Any]) -> list[str]:
    requests, upstream = figures["requests"], figures["upstream"]
    failures = figures["integrity_failures"]
    bad = " bad" if failures else ""
    return [
        _make_card(
            "Requests",
            f"{requests['total']:,}",
            f'<div class="soft">{requests["active"]} active, '
            f"{figures['connections']} connections</div>",
            f'<div class="soft">{requests["cut"]} cut, {requests["refused"]} refused</div>',
        ),
        _make_card(
            "Integrity failures",
            f'<span class="count{bad}">{failures}</span>',
            f'<div class="soft">upstream: {upstream["failures"]} failures, '
            f"{upstream['retries']} retries</div>",
        ),
    ]


def _make_streams(streams: list[dict[str, Any]], *, is_operator: bool) -> str:
    shown = [_make_stream(stream, is_operator=is_operator) for stream in streams[:MAX_STREAMS]]
    if len(streams) > MAX_STREAMS:
        shown.append(f'<div class="stream soft">and {len(streams) - MAX_STREAMS} more</div>')
    if not streams:
        shown.append('<div class="stream soft">Nothing is being sent.</div>')
    title = f"{len(streams)} stream" + ("" if len(streams) == 1 else "s")
    return f'<section class="card all"><h2>{title}</h2>\n' + "\n".join(shown) + "\n</section>"


def _make_stream(stream: dict[str, Any], *, is_operator: bool) -> str:
    sent, size = stream["sent"], stream["size"]
    name = _ROUTES.get(stream["route"], "a file")
    whose = ""
    if is_operator:
        name = str(stream["file"] or name)
        parts = (stream["repo"], stream["client"])
        whose = " · ".join(escape(str(part)) for part in parts if part)
    else:
        name = name if stream["route"] in _ROUTES else "a private file"
    share = "" if not size else f"{min(1.0, sent / size):.0%} of "
    total = f"{share}{format_size(size)}" if size is not None else f"{format_size(sent)} so far"
    bar = _make_bar_of(sent, size)
    stage = _STAGES.get(stream["stage"], "")
    return (
        f'<div class="stream"><div class="row top"><span class="name">{escape(name)}</span>'
        f"<span>{format_size(stream['rate'])}/s</span></div>{bar}"
        f'<div class="row soft"><span>{whose or escape(stream["route"])}</span>'
        f"<span>{total}, {format_time(stream['seconds'])}, {stage}</span></div></div>"
    )


def _make_bar_of(sent: int, size: int | None) -> str:
    if size is None:
        return '<progress aria-label="progress, the size is not known"></progress>'
    return (
        f'<progress max="{max(1, size)}" value="{min(sent, size)}" '
        'aria-label="progress"></progress>'
    )


def _make_footer(*, is_operator: bool, may_log_in: bool, was_refused: bool) -> str:
    if not may_log_in:
        return ""
    if is_operator:
        return (
            '<form method="post" action="operator"><span class="soft">Names are shown: you are the '
            'operator.</span><button name="logout" value="1">Hide them</button></form>'
        )
    refused = '<span class="bad" role="alert">That is not it.</span>' if was_refused else ""
    return (
        '<form method="post" action="operator">'
        '<label for="token" class="soft">Operator token, to see names</label>'
        '<input type="text" name="user" value="operator" autocomplete="username" hidden>'
        '<input type="password" id="token" name="token" autocomplete="current-password" '
        f"required><button>Show</button>{refused}</form>"
    )
