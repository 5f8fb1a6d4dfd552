"""Measure everything, write the table and the chart, and say what falls short.

Usage: python -m benchmarks [--quick] [--strict] [--only NAME ...] [--results FILE] [--chart FILE]
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.chart import chart
from benchmarks.report import Row, page, progress, table
from benchmarks.setting import PAGE, ROOT, Bench, Onebox, airflow_home, onebox

if TYPE_CHECKING:
    from collections.abc import Callable

LATENCY = 0.02
REQUESTS = "requests"
OPERATOR = "HttpOperator"


def wall(samples: list[list[float]], scale: float = 1000) -> list[float]:
    """Take the wall times, in milliseconds unless scaled otherwise."""
    return [scale * sample[0] for sample in samples]


def pair(
    what: str, ours: list[Any], theirs: list[Any], peer: str, bar: float | None, scale: float = 1000, **more: Any
) -> Row:
    """Compare two contenders of the same rounds by wall time, with CPU beside it."""
    cpu = median(sample[1] for sample in ours) / median(sample[1] for sample in theirs)
    return Row(what, wall(ours, scale), wall(theirs, scale), peer, bar=bar, cpu=cpu, **more)


class Measurements:
    """The rows of the table, by the name under which ``--only`` knows them.

    :param bench: runs them.
    :param stack: ends what they start.
    """

    def __init__(self, bench: Bench, stack: ExitStack) -> None:
        self.bench = bench
        self.stack = stack
        self.rows_series: dict[str, list[tuple[float, float]]] = {}
        self.latency_series: dict[str, list[tuple[float, float]]] = {}
        self.size = bench.of(100_000, 5_000)
        self.ways = {
            "bare": {"name": "bare"},
            "http": {"name": "http"},
            "default": {"name": "onebox"},
        }
        # The best of a sweep of page sizes to 2,000 and parallelisms to 8, and the cautious defaults of 0.1.
        self.tuned = {"default": {"name": "onebox"}, "tuned": {"name": "onebox-2000-4"}}
        self.cautious = {"default": {"name": "onebox"}, "cautious": {"name": "onebox-100-2"}}

    @cached_property
    def sandbox(self) -> Onebox:
        """A Onebox with as many tickets as the listings need."""
        return self.stack.enter_context(onebox(self.size, "ticketrz"))

    def tail(self, sandbox: Onebox, resource: str, rows: int) -> dict[str, Any]:
        """Describe the listing of the last so many rows."""
        ids = sandbox.control("ids", resource=resource)
        return {
            "resource": resource,
            "since_id": ids[-rows - 1] if rows < len(ids) else str(int(ids[0]) - 1),
            "page": PAGE,
            "rows": rows,
        }

    def imports(self) -> list[Row]:
        """Import the operators."""
        got = self.bench.child("imports", repetitions=self.bench.of(11, 3))
        what = "import `operators.onebox` after `airflow.sdk`"
        return [
            pair(what, got["ours"], got["http"], "importing HttpOperator", 0.05),
            Row("requests, jwt or aiohttp loaded by it", [len(got["heavy"])], unit="modules", bar=0),
        ]

    def info(self) -> list[Row]:
        """Tell Airflow about the provider."""
        got = self.bench.child("provider_info", repetitions=self.bench.of(31, 5))
        return [
            Row("provider info, import and call", wall(got["ours"]), bar=2),
            Row("modules loaded by it beside its own", [len(got["heavy"])], unit="modules", bar=0),
        ]

    def parsing(self) -> list[Row]:
        """Parse DAG files."""
        got = self.bench.child("parsing", repetitions=self.bench.of(9, 2), tasks=500)
        peer = "500 HttpOperator tasks"
        return [
            pair("parse a DAG file with 500 tasks", got["ours"], got["http"], peer, 1.0),
            pair("the same again, modules loaded", got["ours_warm"], got["http_warm"], peer, 1.0),
        ]

    def token(self) -> list[Row]:
        """Sign in, and ask for the token again."""
        sandbox, rows = self.sandbox, []
        # Onebox is never on the same machine: the bar is for a login over a network. Without one it is for what
        # the provider itself adds, because Airflow's masker takes as long for a token as a login on loopback.
        for latency, where, bar, own in (
            (LATENCY, f"behind {LATENCY * 1000:g} ms", 1.15, None),
            (0, "on loopback", None, 1.15),
        ):
            sandbox.control("configure", latency=latency)
            got = self.bench.child("cold_token", sandbox, repetitions=self.bench.of(45, 5))
            what = f"cold token {where}"
            rows.append(pair(what, got["ours"], got["bare"], "requests.post", bar))
            rows.append(pair(f"{what}: HttpHook", got["http"], got["bare"], "requests.post", None))
            rows.append(pair(what, got["ours"], got["masked"], "requests.post and mask_secret", own))
        got = self.bench.child("cached_token", sandbox, repetitions=self.bench.of(31, 5))
        rows.append(Row("cached `get_token()` in a task", wall(got["ours"], 1e6), unit="µs", bar=5))
        return rows

    def calls(self) -> list[Row]:
        """Make small calls."""
        self.sandbox.control("configure", latency=0)
        got = self.bench.child("calls", self.sandbox, repetitions=self.bench.of(25, 5), calls=100)
        peer = "requests.Session"
        return [
            pair("`hook.request`, one small call", got["ours"], got["bare"], peer, 1.10),
            pair("the same: HttpHook", got["http"], got["bare"], peer, None),
        ]

    def listing(self) -> list[Row]:
        """List many rows behind latency."""
        sandbox, size = self.sandbox, self.size
        sandbox.control("configure", latency=LATENCY)
        common = {**self.tail(sandbox, "ticketrz", size), "warm_up": self.tail(sandbox, "ticketrz", 1000)}
        got = self.bench.child("listing", sandbox, repetitions=self.bench.of(5, 1), ways=self.ways, **common)
        what = f"list {size:,} rows behind {LATENCY * 1000:g} ms"
        for name, samples in got.items():
            self.rows_series.setdefault(name, []).append((size, median(wall(samples, 1))))
        grown: dict[str, list[float]] = {"http": [], "default": []}
        for _ in range(self.bench.of(3, 1)):
            for name, samples in grown.items():
                size_of = self.bench.child("listing_memory", sandbox, way=self.ways[name], **common)
                samples.append(size_of / 1e6)
        tuned = self.bench.child("listing", sandbox, repetitions=self.bench.of(5, 1), ways=self.tuned, **common)
        rows = [
            pair(what, got["default"], got["bare"], REQUESTS, 0.35),
            pair(what, got["default"], got["http"], OPERATOR, 0.5),
            pair(what, tuned["default"], tuned["tuned"], "`page_size=2000, parallelism=4`", 1.25),
            Row("the same: peak growth of memory", grown["default"], grown["http"], OPERATOR, "MB", 0.5),
        ]
        size = self.chart_rows
        common = {**self.tail(sandbox, "ticketrz", size), "warm_up": self.tail(sandbox, "ticketrz", 1000)}
        for latency, cap in ((0.002, 0), (0.1, 0), (LATENCY, 100)):
            sandbox.control("configure", latency=latency, page_cap=cap)
            got = self.bench.child("listing", sandbox, repetitions=self.bench.of(3, 1), ways=self.cautious, **common)
            what = f"list {size:,} rows behind {latency * 1000:g} ms"
            what += f", at most {cap} a page" if cap else ""
            rows.append(pair(what, got["default"], got["cautious"], "`page_size=100, parallelism=2`", 1.0))
        sandbox.control("configure", page_cap=0)
        return rows

    def files(self) -> list[Row]:
        """Write a file of JSON Lines."""
        sandbox, rows = self.sandbox, []
        common = self.tail(sandbox, "ticketrz", self.size)
        for latency, where in ((LATENCY, f"behind {LATENCY * 1000:g} ms"), (0, "on loopback")):
            sandbox.control("configure", latency=latency)
            got = self.bench.child("files", sandbox, repetitions=self.bench.of(3, 1), **common)
            rate = {name: [self.size / sample[0] for sample in samples] for name, samples in got.items()}
            cpu = median(s[1] for s in got["ours"]) / median(s[1] for s in got["bare"])
            what = f"OneboxListOperator to .jsonl.gz {where}"
            rows.append(Row(what, rate["ours"], rate["bare"], REQUESTS, "rows/s", 1.3, at_least=True, cpu=cpu))
        return rows

    def flat(self) -> list[Row]:
        """List few and very many rows: each costs the same."""
        small, large = self.bench.of(10_000, 1_000), self.bench.of(1_000_000, 20_000)
        with onebox(large, "contactrz") as sandbox:
            many, few = (self.tail(sandbox, "contactrz", rows) for rows in (large, small))
            ways = {"many": {"name": "onebox", **many}, "few": {"name": "onebox", **few}}
            rounds = self.bench.of(3, 1)
            got = self.bench.child("flat", sandbox, repetitions=rounds, ways=ways, ratio=large // small // 5)
            grown: dict[str, list[float]] = {"many": [], "few": []}
            for _ in range(rounds):
                for name, samples in grown.items():
                    held = self.bench.child("listing_memory", sandbox, way=ways[name], warm_up=few, total=True)
                    samples.append(held / 1e6)
        what, peer = f"a row of {large:,}", f"a row of {small:,}"
        return [
            pair(f"{what}: time", got["many"], got["few"], peer, 1.1, 1e6, unit="µs"),
            Row(f"{what}: peak memory of the process", grown["many"], grown["few"], peer, "MB", 1.1),
        ]

    def triggers(self) -> list[Row]:
        """Let triggers wait."""
        self.sandbox.control("configure", latency=0)
        count, interval = 1000, self.bench.of(8, 4)
        got: dict[str, list[dict[str, float]]] = {"ours": [], "apart": [], "http": []}
        for _ in range(self.bench.of(2, 1)):
            for who, samples in got.items():
                options = {"who": who, "count": count, "interval": interval, "intervals": 2}
                samples.append(self.bench.child("waiting", self.sandbox, **options))
        peer = "HttpSensorTrigger"

        def row(what: str, key: str, unit: str, scale: float, who: str = "ours", bar: float | None = 0.5) -> Row:
            ours, theirs = ([scale * sample[key] for sample in got[name]] for name in (who, "http"))
            return Row(f"{count:,} waiting triggers: {what}", ours, theirs, peer, unit, bar)

        return [
            row("CPU for one poll of each", "cpu", "s", 1),
            row("the same if none can ask together", "cpu", "s", 1, "apart", None),
            row("peak growth of memory", "memory", "MB", 1e-6),
            row("open sockets", "sockets", "", 1),
        ]

    def points(self) -> list[Row]:
        """Collect the chart's points, which have no bars."""
        sandbox = self.sandbox
        sandbox.control("configure", latency=LATENCY)
        rounds, warm_up = self.bench.of(3, 1), self.tail(sandbox, "ticketrz", 1000)
        for rows in [n for n in (1_000, 10_000, 30_000) if n < self.size]:
            common = {**self.tail(sandbox, "ticketrz", rows), "warm_up": warm_up}
            got = self.bench.child("listing", sandbox, repetitions=rounds, ways=self.ways, **common)
            for name, samples in got.items():
                self.rows_series.setdefault(name, []).append((rows, median(wall(samples, 1))))
        common = {**self.tail(sandbox, "ticketrz", self.chart_rows), "warm_up": warm_up}
        for latency in (0, LATENCY) if self.bench.quick else (0, 0.01, LATENCY, 0.05, 0.1):
            sandbox.control("configure", latency=latency)
            got = self.bench.child("listing", sandbox, repetitions=rounds, ways=self.ways, **common)
            for name, samples in got.items():
                self.latency_series.setdefault(name, []).append((latency * 1000, median(wall(samples, 1))))
        return []

    @property
    def chart_rows(self) -> int:
        """Rows that are listed for each point of latency."""
        return self.bench.of(10_000, 2_000)

    def draw(self) -> str | None:
        """Draw the chart, if its points were measured."""
        if not self.latency_series:
            return None
        rows = {name: sorted([(0, 0), *points]) for name, points in self.rows_series.items()}
        facts = {"latency": f"Behind {LATENCY * 1000:g} ms of latency", "rows": f"{self.chart_rows:,} rows"}
        return chart(rows, self.latency_series, facts)


NAMES = ("imports", "info", "parsing", "token", "calls", "listing", "files", "flat", "triggers", "points")


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What the provider costs.")
    parser.add_argument("--quick", action="store_true", help="measure less, for development; writes no file by itself")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a bar is not reached")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--results", type=Path, help="where the table goes; benchmarks/results.md after a whole run")
    parser.add_argument("--chart", type=Path, help="where the chart goes; docs/images/benchmark.svg after a whole run")
    options = parser.parse_args()
    whole = not options.quick and options.only == NAMES
    results = options.results or (ROOT / "benchmarks/results.md" if whole else None)
    image = options.chart or (ROOT / "docs/images/benchmark.svg" if whole else None)
    start = time.monotonic()
    rows: list[Row] = []
    with airflow_home() as env, ExitStack() as stack:
        measurements = Measurements(Bench(env, options.quick), stack)
        for name in options.only:
            progress(f"{time.monotonic() - start:4.0f} s  {name}")
            measure: Callable[[], list[Row]] = getattr(measurements, name)
            for row in measure():
                progress("       " + " | ".join(row.cells()))
                rows.append(row)
        drawn = measurements.draw()
    progress(f"{time.monotonic() - start:4.0f} s  done")
    sys.stdout.write(table(rows))
    if results:
        results.write_text(page(rows))
    if image and drawn:
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_text(drawn)
    short = [row for row in rows if not row.reached]
    for row in short:
        sys.stdout.write(f"Short of its bar: {row.what}: {row.cells()[3]}, bar {row.cells()[7]}\n")
    return 1 if short and options.strict else 0


if __name__ == "__main__":
    sys.exit(main())
