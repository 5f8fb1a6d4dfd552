"""Charts as SVG that reads on light and on dark, and on a phone: panels one below the other."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Series = dict[str, list[tuple[float, float]]]

INK = "#57606a"
WIDTH, HEIGHT, DOTS = 4.6, 3, 12  # inches of a panel, and the most points that get a dot


@dataclass(frozen=True)
class Style:
    """How a line looks.

    :param name: in the legend.
    :param colour: of the line.
    :param dash: its pattern, lengths separated by spaces.
    """

    name: str
    colour: str
    dash: str = ""


@dataclass(frozen=True)
class Panel:
    """One part of a chart.

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
    "bare": Style("requests, page after page", "#9a6700"),
    "http": Style("HttpOperator with pagination", "#8250df"),
    "default": Style("list_records", "#1a7f37"),
}


def _tick(write: Callable[[float], str], value: float, _: int | None) -> str:
    return write(value)


def draw(title: str, panels: list[Panel], styles: Mapping[str, Style]) -> str:
    """Draw panels one below the other, with one legend.

    :param title: for those who can't see it.
    :param panels: from top to bottom.
    :param styles: of the lines, by name, in the order of the legend.
    :return: the SVG.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    look: dict[Any, Any] = {"font.size": 12, "font.family": "sans-serif", "svg.fonttype": "none", "svg.hashsalt": title}
    look |= {"axes.spines.top": False, "axes.spines.right": False}
    look |= dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
    with mpl.rc_context(rc=look):
        figure = Figure((WIDTH, HEIGHT * len(panels) + 0.3 * len(styles)), layout="constrained")
        for axes, panel in zip(figure.subplots(len(panels), squeeze=False).flat, panels, strict=True):
            for name, points in panel.series.items():
                style = styles[name]
                dash = (0, tuple(map(float, style.dash.split()))) if style.dash else "-"
                marker = "o" if len(points) <= DOTS else ""
                x, y = zip(*points, strict=True)
                axes.plot(x, y, color=style.colour, linestyle=dash, marker=marker, markersize=4, label=style.name)
            axes.set_title(panel.title, loc="left", fontsize=13)
            axes.set_xlabel(panel.label)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.xaxis.set_major_formatter(FuncFormatter(partial(_tick, panel.tick)))
            axes.yaxis.set_major_formatter(FuncFormatter(partial(_tick, f"{{:g}} {panel.unit}".format)))
            axes.set_ylim(bottom=0)
            axes.grid(axis="y", color=INK, alpha=0.3)
        lines = {str(line.get_label()): line for axes in figure.axes for line in axes.get_lines()}
        shown = [style.name for style in styles.values() if style.name in lines]
        figure.legend([lines[name] for name in shown], shown, loc="outside lower left", frameon=False)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Title": title, "Date": None, "Creator": None})
    return file.getvalue()


def chart(rows: Series, latency: Series, constants: Mapping[str, str]) -> str:
    """Draw the benchmark: listing time against rows and against latency.

    :param rows: seconds against rows, by contender.
    :param latency: seconds against milliseconds of latency, by contender.
    :param constants: what did not change in either panel: ``rows`` and ``latency``.
    :return: the SVG.
    """
    return draw(
        "Time to list records: list_records beside requests and HttpOperator",
        [
            Panel(constants["latency"], "records", "s", rows, lambda n: f"{n:,.0f}"),
            Panel(constants["rows"], "latency of each request, ms", "s", latency, lambda ms: f"{ms:g}"),
        ],
        {name: STYLES[name] for name in rows},
    )
