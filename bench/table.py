"""The results as a table for a terminal."""

from bench.results import Figure, Results

NAME_WIDTH = 66


def format_number(value: float) -> str:
    """Return a number with three significant digits and no exponent."""
    size = abs(value)
    if size >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 0.1 else f"{value:.3f}"


def format_figure(figure: Figure) -> str:
    """Return one line: median, spread, unit, goal and whether it was met."""
    spread = ""
    if len(figure.values) > 1:
        spread = f"{format_number(figure.low)} - {format_number(figure.high)}"
    verdict = "estimate" if figure.is_estimate else ""
    if figure.goal is not None:
        verdict = f"{figure.goal}  {'met' if figure.is_met else 'NOT MET'}"
    name = f"{figure.name}{f', {figure.unit}' if figure.unit else ''}"
    line = f"  {name:{NAME_WIDTH}} {format_number(figure.median):>8}  {spread:>17}  {verdict}"
    return line.rstrip()


def make_table(results: Results) -> str:
    """Return all sections, then the number of goals that were met."""
    lines = [f"  {'':{NAME_WIDTH}} {'median':>8}  {'min - max':>17}  goal"]
    for section in results.sections():
        lines += ["", section]
        lines += [format_figure(figure) for figure in results.in_section(section)]
        lines += [f"  ({text})" for name, text in results.remarks if name == section]
    goals = [figure for figure in results.figures.values() if figure.goal is not None]
    missed = [figure for figure in goals if not figure.is_met]
    lines += ["", f"{len(goals) - len(missed)} of {len(goals)} goals met"]
    lines += [
        f"  not met: {f.section}: {f.name}: {format_number(f.median)}, {f.goal}" for f in missed
    ]
    return "\n".join(lines) + "\n"
