"""Charts of two panels, as SVG that reads on light and on dark."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Series = dict[str, list[tuple[float, float]]]

INK = "#7d8590"  # readable on white and on black
WIDTH, HEIGHT, LEFT, TOP, GAP, TICK, DOTS = 350, 230, 48, 54, 60, 30, 12


@dataclass(frozen=True)
class Style:
    """How a line looks.

    :param name: in the legend.
    :param colour: of the line.
    :param dash: its pattern.
    """

    name: str
    colour: str
    dash: str = ""

    @property
    def stroke(self) -> str:
        """The attributes of the line."""
        dash = f' stroke-dasharray="{self.dash}"' if self.dash else ""
        return f'stroke="{self.colour}" stroke-width="2"{dash}'


@dataclass(frozen=True)
class Panel:
    """One half of a chart.

    :param title: above it.
    :param label: of the horizontal axis.
    :param unit: of the vertical one.
    :param series: points by the name of their style.
    :param tick: writes a value of the horizontal axis.
    """

    title: str
    label: str
    unit: str
    series: Series
    tick: Callable[[float], str]


STYLES = {
    "bare": Style("requests, page after page", "#bf8700"),
    "http": Style("HttpOperator with pagination", "#8250df"),
    "default": Style("list_records", "#1a7f37"),
}


def _line(points: list[tuple[float, float]], style: Style) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{style.colour}"/>' for x, y in points)
    return f'<polyline points="{path}" fill="none" {style.stroke}/>{dots if len(points) <= DOTS else ""}'


def _text(x: float, y: float, text: str, anchor: str = "middle", size: int = 11, fill: str = INK) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{fill}">{text}</text>'


def _steps(most: float) -> list[float]:
    step = 10 ** math.floor(math.log10(most))
    step = next(step * part for part in (0.1, 0.2, 0.5, 1, 2) if most / (step * part) <= 5)
    return [step * n for n in range(int(most / step) + 1)]


def _panel(left: float, panel: Panel, styles: Mapping[str, Style]) -> str:
    series = panel.series
    xs = [x for points in series.values() for x, _ in points]
    most_x, most_y = max(xs), 1.05 * max(y for points in series.values() for _, y in points)

    def at(x: float, y: float) -> tuple[float, float]:
        return left + WIDTH * x / most_x, TOP + HEIGHT * (1 - y / most_y)

    parts = [_text(left, TOP - 14, panel.title, "start", 13)]
    for y in _steps(most_y):
        _, height = at(0, y)
        parts.append(
            f'<line x1="{left}" x2="{left + WIDTH}" y1="{height:.1f}" y2="{height:.1f}" stroke="{INK}" opacity="0.3"/>'
        )
        parts.append(_text(left - 6, height + 4, f"{y:g} {panel.unit}", "end"))
    end = -math.inf
    for x in sorted(set(xs)):
        place, _ = at(x, 0)
        # Not over the one before.
        if place - end >= TICK:
            parts.append(_text(place, TOP + HEIGHT + 16, panel.tick(x)))
            end = place
    parts.append(_text(left + WIDTH / 2, TOP + HEIGHT + 34, panel.label))
    parts += [_line([at(x, y) for x, y in points], styles[name]) for name, points in series.items()]
    return "".join(parts)


def draw(title: str, panels: list[Panel], styles: Mapping[str, Style]) -> str:
    """Draw panels side by side, with one legend.

    :param title: for those who can't see it.
    :param panels: from left to right.
    :param styles: of the lines, by name, in the order of the legend.
    :return: the SVG.
    """
    width, height = LEFT + len(panels) * (WIDTH + GAP) - GAP + 20, TOP + HEIGHT + 74
    legend = []
    x: float = LEFT
    y = height - 16
    for style in styles.values():
        legend.append(f'<line x1="{x}" x2="{x + 22}" y1="{y}" y2="{y}" {style.stroke}/>')
        legend.append(_text(x + 28, y + 4, style.name, "start"))
        x += 50 + 6.3 * len(style.name)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" role="img">'
        f"<title>{title}</title>"
        + "".join(_panel(LEFT + n * (WIDTH + GAP), panel, styles) for n, panel in enumerate(panels))
        + "".join(legend)
        + "</svg>\n"
    )


def chart(rows: Series, latency: Series, facts: Mapping[str, str]) -> str:
    """Draw the benchmark: listing time against rows and against latency.

    :param rows: seconds against rows, by contender.
    :param latency: seconds against milliseconds of latency, by contender.
    :param facts: what was held still in either panel: ``rows`` and ``latency``.
    :return: the SVG.
    """
    return draw(
        "Time to list records: list_records beside requests and HttpOperator",
        [
            Panel(facts["latency"], "rows", "s", rows, lambda n: f"{n:,.0f}"),
            Panel(facts["rows"], "latency of each request, ms", "s", latency, lambda ms: f"{ms:g}"),
        ],
        {name: STYLES[name] for name in rows},
    )
