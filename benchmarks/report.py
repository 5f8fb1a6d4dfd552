"""What was measured, beside its bar, as a table."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass, field
from importlib.metadata import version
from statistics import median, quantiles
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

PACKAGES = (
    "airflow-provider-onebox",
    "apache-airflow",
    "apache-airflow-providers-http",
    "requests",
    "urllib3",
    "aiohttp",
    "msgspec",
)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    :param what: what was measured.
    :param ours: the provider's samples, in ``unit``.
    :param theirs: the peer's, from the same rounds; none for an absolute bar.
    :param peer: who the peer is.
    :param unit: of the samples.
    :param bar: what the ratio, or without a peer the value, has to reach; ``None`` if it is only shown.
    :param at_least: whether the bar is a least and not a most.
    :param cpu: the ratio of CPU time, where it was measured.
    """

    what: str
    ours: list[float]
    theirs: list[float] = field(default_factory=list)
    peer: str = ""
    unit: str = "ms"
    bar: float | None = None
    at_least: bool = False
    cpu: float | None = None

    @property
    def value(self) -> float:
        """The ratio of medians, or the median if there is no peer."""
        return median(self.ours) / median(self.theirs) if self.theirs else median(self.ours)

    @property
    def spread(self) -> tuple[float, float]:
        """The middle half of the rounds: the quartiles of their ratios, or of their values."""
        pairs = zip(self.ours, self.theirs, strict=True)
        each = [ours / theirs for ours, theirs in pairs] if self.theirs else self.ours
        low, _, high = quantiles(each, n=4, method="inclusive") if len(each) > 1 else each * 3
        return low, high

    @property
    def reached(self) -> bool:
        """Whether the bar is reached."""
        if self.bar is None:
            return True
        return self.value >= self.bar if self.at_least else self.value <= self.bar

    def cells(self) -> list[str]:
        """Write the line's cells."""
        low, high = self.spread
        bar = "" if self.bar is None else f"{'>=' if self.at_least else '<='} {self.bar:g}"
        return [
            self.what,
            f"{number(median(self.ours))} {self.unit}".strip(),
            f"{self.peer}: {number(median(self.theirs))} {self.unit}".strip() if self.theirs else "",
            number(self.value),
            f"{number(low)} to {number(high)}",
            "" if self.cpu is None else number(self.cpu),
            str(len(self.ours)),
            bar if self.theirs or not bar else f"{bar} {self.unit}".strip(),
            "" if self.bar is None else "yes" if self.reached else "**no**",
        ]


def number(value: float) -> str:
    """Write a number with three digits that mean something."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def markdown(head: list[str], lines: Iterable[list[str]]) -> str:
    """Write a table in Markdown."""
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, ["---"] * len(head), *lines))


def table_in(results: str) -> list[list[str]]:
    """Read the table of the page of results.

    :param results: the page.
    :return: the cells of each line, as :meth:`Row.cells` writes them.
    """
    lines = [line for line in results.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line[2:-1].split(" | ")] for line in lines[2:]]


def fill(text: str, table: list[list[str]]) -> str:
    """Put figures into a page, between its comments.

    :param text: the page. Between ``<!-- figures -->`` and ``<!-- end of figures -->`` is a table of all that have a
        peer and a bar; between ``<!-- listing -->`` and ``<!-- end of listing -->`` are two sentences.
    :param table: what was measured.
    :return: the page with new figures.
    """
    lines = (cells[:3] for cells in table if cells[2] and cells[7])
    figures = markdown(["", "Onebox provider", "instead"], lines)
    text = _between(text, "<!-- figures -->", f"\n\n{figures}\n", "<!-- end of figures -->")
    what = "list 100,000 records at 20 ms of latency"
    ours, loop = next(cells[1:3] for cells in table if cells[0] == what and cells[2].startswith("requests:"))
    sockets, theirs = next(cells[1:3] for cells in table if cells[0] == "1,000 waiting triggers: open sockets")
    sentences = (
        f"At a latency of 20 ms, it lists 100,000 records in {_seconds(ours)} s, a loop with `requests` in "
        f"{_seconds(loop)} s.\n  A thousand waiting sensors share {sockets} sockets; with `HttpSensorTrigger`, it's "
        f"{theirs.rpartition(': ')[2]}."
    )
    return _between(text, "<!-- listing -->", sentences, "<!-- end of listing -->")


def _seconds(cell: str) -> str:
    """Read the milliseconds of a cell."""
    return f"{float(cell.split()[-2].replace(',', '')) / 1000:.1f}"


def _between(text: str, start: str, new: str, end: str) -> str:
    before, found, rest = text.partition(start)
    return f"{before}{start}{new}{end}{rest.partition(end)[2]}" if found else text


def page(rows: list[Row]) -> str:
    """Write the whole page of results."""
    versions = [f"{name} {version(name)}" for name in PACKAGES]
    missed = [row.what for row in rows if not row.reached]
    head = ["what", "ours", "beside", "ratio", "middle half", "CPU ratio", "n", "bar", "reached"]
    measured = f"CPython {platform.python_version()} on {platform.system()}, {', '.join(versions)}"
    return f"""# Results of `make bench`

Measured with {measured}. Onebox is the package's own sandbox, in a separate process on the same machine.

The ratio is that of the medians of ours and the peer's, measured in turns; the middle half holds half of the single
rounds' ratios; n is how many rounds there were. A row without a peer has an absolute bar. The CPU ratio is that of
the client's own processor time, which a busy machine and the server disturb less.

{markdown(head, (row.cells() for row in rows))}
{"Every bar is reached." if not missed else "Short of their bars: " + "; ".join(missed) + "."}
"""


def progress(text: str) -> None:
    """Say what is being done."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
