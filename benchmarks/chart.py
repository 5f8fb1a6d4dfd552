"""The chart: listing time against rows and against latency, as SVG that reads on light and on dark."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Series = dict[str, list[tuple[float, float]]]

INK = "#7d8590"  # readable on white and on black
COLOURS = {"bare": "#bf8700", "http": "#8250df", "default": "#1a7f37"}
NAMES = {
    "bare": "requests, page after page",
    "http": "HttpOperator with pagination",
    "default": "list_records",
}
WIDTH, HEIGHT, LEFT, TOP, GAP, TICK = 350, 230, 48, 54, 60, 30


def _line(points: list[tuple[float, float]], name: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{COLOURS[name]}"/>' for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{COLOURS[name]}" stroke-width="2"/>{dots}'


def _text(x: float, y: float, text: str, anchor: str = "middle", size: int = 11, fill: str = INK) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{fill}">{text}</text>'


def _steps(most: float) -> list[float]:
    step = 10 ** math.floor(math.log10(most))
    step = next(step * part for part in (0.1, 0.2, 0.5, 1, 2) if most / (step * part) <= 5)
    return [step * n for n in range(int(most / step) + 1)]


def _panel(left: float, title: str, label: str, series: Series, tick: Callable[[float], str]) -> str:
    xs = [x for points in series.values() for x, _ in points]
    most_x, most_y = max(xs), 1.05 * max(y for points in series.values() for _, y in points)

    def at(x: float, y: float) -> tuple[float, float]:
        return left + WIDTH * x / most_x, TOP + HEIGHT * (1 - y / most_y)

    parts = [_text(left, TOP - 14, title, "start", 13)]
    for y in _steps(most_y):
        _, height = at(0, y)
        parts.append(
            f'<line x1="{left}" x2="{left + WIDTH}" y1="{height:.1f}" y2="{height:.1f}" stroke="{INK}" opacity="0.3"/>'
        )
        parts.append(_text(left - 6, height + 4, f"{y:g} s", "end"))
    end = -math.inf
    for x in sorted(set(xs)):
        place, _ = at(x, 0)
        # Not over the one before.
        if place - end >= TICK:
            parts.append(_text(place, TOP + HEIGHT + 16, tick(x)))
            end = place
    parts.append(_text(left + WIDTH / 2, TOP + HEIGHT + 34, label))
    parts += [_line([at(x, y) for x, y in points], name) for name, points in series.items()]
    return "".join(parts)


def chart(rows: Series, latency: Series, facts: Mapping[str, str]) -> str:
    """Draw both panels.

    :param rows: seconds against rows, by contender.
    :param latency: seconds against milliseconds of latency, by contender.
    :param facts: what was held still in either panel: ``rows`` and ``latency``.
    :return: the SVG.
    """
    right = LEFT + WIDTH + GAP
    width, height = right + WIDTH + 20, TOP + HEIGHT + 74
    legend = []
    x = LEFT
    for name in rows:
        y = height - 16
        legend.append(f'<line x1="{x}" x2="{x + 22}" y1="{y}" y2="{y}" stroke="{COLOURS[name]}" stroke-width="2"/>')
        legend.append(_text(x + 28, y + 4, NAMES[name], "start"))
        x += 50 + 6.3 * len(NAMES[name])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" role="img">'
        "<title>Time to list records: list_records beside requests and HttpOperator</title>"
        + _panel(LEFT, facts["latency"], "rows", rows, lambda n: f"{n:,.0f}")
        + _panel(right, facts["rows"], "latency of each request", latency, lambda ms: f"{ms:g} ms")
        + "".join(legend)
        + "</svg>\n"
    )
