"""What the soak's samples say: a table, a chart, and what falls short of its bar."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from statistics import mean, median
from typing import TYPE_CHECKING, Any

from benchmarks.chart import Panel, Style, draw
from benchmarks.report import markdown, number

if TYPE_CHECKING:
    from collections.abc import Callable

SAMPLE = ("memory", "cpu", "threads", "files", "masked", "lines", "polls")
POINTS = 20


@dataclass(frozen=True)
class Metric:
    """What must not grow.

    :param key: its name in a sample.
    :param label: its name in the table.
    :param bar: how much it may be at the end: a multiple of what it was after the warm-up, and how much more.
    :param rate: whether it counts up for ever, and what it gains in each poll must not grow.
    :param short: the bar where there is only a minute, of which a busy machine can spoil much.
    """

    key: str
    label: str
    bar: tuple[float, float]
    rate: bool = False
    short: tuple[float, float] | None = None

    def most(self, base: float, short: bool) -> float:
        """Say how much it may be at the end.

        :param base: what it was after the warm-up.
        :param short: whether it was measured in the short form.
        :return: the most.
        """
        ratio, slack = self.short if short and self.short else self.bar
        return base * ratio + slack


METRICS = (
    Metric("memory", "resident memory, MB", (1.05, 0), short=(1.1, 0)),
    Metric("cpu", "CPU a poll, ms", (1.1, 0), rate=True, short=(1.5, 0.5)),
    # Airflow has a few of its own that come and go.
    Metric("threads", "threads", (1, 2)),
    Metric("files", "open sockets and files", (1, 4)),
    Metric("masked", "masked strings", (1, 0)),
    # Airflow logs twice a minute what it runs.
    Metric("lines", "log lines a poll", (1.1, 0.01), rate=True, short=(1.1, 0.05)),
)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    :param what: what was measured.
    :param base: its value after the warm-up.
    :param end: its value at the end.
    :param most: the most that it may be at the end.
    :param at_least: whether that is a least.
    """

    what: str
    base: float
    end: float
    most: float
    at_least: bool = False

    @property
    def reached(self) -> bool:
        """Whether the bar is reached."""
        return self.end >= self.most if self.at_least else self.end <= self.most

    def cells(self) -> list[str]:
        """Write the line's cells."""
        bar = f"{'>=' if self.at_least else '<='} {number(self.most)}"
        return [self.what, number(self.base), number(self.end), bar, "yes" if self.reached else "**no**"]


def part(result: dict[str, Any], values: list[float], first: float, last: float) -> list[float]:
    """Take the samples between two shares of the time, at least two."""
    times = result["times"][: len(values)]
    inside = [v for t, v in zip(times, values, strict=True) if first * times[-1] <= t <= last * times[-1]]
    return inside if len(inside) > 1 else values[-2:]


def rate(result: dict[str, Any], of: dict[str, list[float]], key: str, first: float, last: float) -> float:
    """Say how much of something a poll took between two shares of the time.

    CPU is set against the yardstick: at a time when a fixed piece of work took more of it, so did everything else.
    """
    polls, values = part(result, of["polls"], first, last), part(result, of[key], first, last)
    gained = values[-1] - values[0]
    if key == "cpu":
        gained *= mean(result["yardstick"]) / mean(part(result, result["yardstick"], first, last))
    return gained / max(polls[-1] - polls[0], 1)


def check(result: dict[str, Any]) -> list[Row]:
    """Compare the end with what there was after the warm-up, which is the first tenth.

    A level is compared in the last tenth and in the second one, a rate in the last three and in the second to fourth.

    :param result: what was measured on one Airflow.
    :return: the table's lines.
    """
    rows = []
    for name, of in result["samples"].items():
        for metric in METRICS:
            if metric.key == "lines" and not of["lines"][-1]:
                continue  # its lines are another's
            if metric.rate:
                base, end = (rate(result, of, metric.key, *when) for when in ((0.1, 0.4), (0.7, 1)))
            else:
                typical: Callable[[list[float]], float] = median if metric.key == "memory" else max
                base, end = (typical(part(result, of[metric.key], *when)) for when in ((0.1, 0.2), (0.9, 1)))
            rows.append(Row(f"{name}: {metric.label}", base, end, metric.most(base, result["short"])))
    words = {"renewals": "renewals in the triggerer", "polls": "polls", "pokes": "renewals in the task"}
    for key, least in result["least"].items():
        rows.append(Row(words[key], 0, result["done"][key], least, at_least=True))
    waiting, expected = result["waiting"]
    return [
        *rows,
        Row("triggers that wait", expected, waiting, expected, at_least=True),
        Row("logins that failed", 0, result["failed"], 0),
    ]


def write(results: list[dict[str, Any]]) -> str:
    """Write the page.

    :param results: what was measured on each Airflow.
    :return: Markdown.
    """
    head = ["what", "after the warm-up", "at the end", "bar", "reached"]
    parts = [_HEAD]
    for result in results:
        done, minutes = result["done"], result["times"][-1] / 60
        parts.append(
            f"## Airflow {result['airflow']}\n\n"
            f"{', '.join(result['versions'])}. {minutes:.1f} minutes; {done['renewals']:,} renewals and "
            f"{done['polls']:,} polls in the triggerer, {done['pokes']:,} renewals in the task. "
            f"Ended: {result['ended']}.\n\n" + markdown(head, (row.cells() for row in check(result)))
        )
    return "\n".join(parts)


_HEAD = """# Results of `make soak`

1,000 triggers wait in one triggerer, over 20 connections; on Airflow 3, 20 watchers poll beside them each second. A
task waits in poke mode. The triggerer's tokens live 2 s, the task's 1 s, and all are renewed after half of that. A poll
is a request for a list as Onebox counts it; one that serves several triggers counts once. "After the warm-up" is the
second tenth of the time and "at the end" the last one, for what is counted a poll the second to fourth and the last
three. Memory is what is resident. CPU is corrected by what a fixed piece of work takes at the same time, because other
load makes all work slower.
"""

_NAMES = {"triggerer": "triggerer", "task": "task", "task's supervisor": "its supervisor"}
_COLOURS = {"triggerer": "#1a7f37", "task": "#9a6700", "task's supervisor": "#8250df"}


def picture(results: list[dict[str, Any]]) -> str:
    """Draw memory and CPU over time.

    :param results: what was measured on each Airflow.
    :return: SVG.
    """
    styles, memory, cpu = {}, {}, {}
    for dash, result in zip(("", "5 3"), results, strict=False):
        for name, words in _NAMES.items():
            of, key = result["samples"][name], f"{words} {result['airflow']}"
            styles[key] = Style(key, _COLOURS[name], dash)
            ends = [n / POINTS for n in range(POINTS + 1)]
            spans = list(itertools.pairwise(ends))
            minutes = [end * result["times"][-1] / 60 for end in ends[1:]]
            memory[key] = list(zip(minutes, (median(part(result, of["memory"], *span)) for span in spans), strict=True))
            cpu[key] = list(zip(minutes, (rate(result, of, "cpu", *span) for span in spans), strict=True))
    return draw(
        "The soak: memory and CPU over time",
        [
            Panel("Resident memory", "minutes", "MB", memory, lambda n: f"{n:.1f}"),
            Panel("CPU of a poll", "minutes", "ms", cpu, lambda n: f"{n:.1f}"),
        ],
        styles,
    )
