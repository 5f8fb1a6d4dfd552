"""Measure everything, write the table and the chart, and say what falls short.

Usage: python -m benchmarks [--quick] [--strict] [--only NAME ...] [--results FILE] [--chart FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.chart import chart
from benchmarks.report import Row, fill, page, progress, table_in
from benchmarks.setting import ROOT, Bench, Onebox, airflow_home, described, in_turns, onebox

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.chart import Series

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


Ways = dict[str, dict[str, Any]]
"""Arguments of :func:`benchmarks.child.lister` by name."""

WAYS: Ways = {"bare": {"who": "bare"}, "http": {"who": "http"}, "default": {}}
# The best of a sweep of page sizes to 2,000 and parallelisms to 8, and the cautious defaults of 0.1.
TUNED: Ways = {"default": {}, "tuned": {"page_size": 1600, "parallelism": 4}}
CAUTIOUS: Ways = {"default": {}, "cautious": {"page_size": 100, "parallelism": 2}}
IDEAL: Ways = {"default": {}, "file": {"who": "file"}, "ideal": {"who": "ideal"}}


def tail(sandbox: Onebox, rows: int) -> dict[str, Any]:
    """Describe the listing of the last so many tickets."""
    ids = sandbox.control("ids")
    return {"since_id": ids[-rows - 1] if rows < len(ids) else str(int(ids[0]) - 1), "rows": rows}


def add_points(series: Series, x: float, got: dict[str, list[list[float]]]) -> None:
    """Add the seconds that each contender took to its line in the chart."""
    for name, samples in got.items():
        series.setdefault(name, []).append((x, median(wall(samples, 1))))


class Measurements:
    """The rows of the table, by the name under which ``--only`` knows them.

    :param bench: runs them.
    :param stack: ends what they start.
    """

    def __init__(self, bench: Bench, stack: ExitStack) -> None:
        self.bench = bench
        self.stack = stack
        self.rows_series: Series = {}
        self.latency_series: Series = {}
        self.size = bench.of(100_000, 5_000)

    @cached_property
    def sandbox(self) -> Onebox:
        """A Onebox with as many tickets as the listings need."""
        return self.stack.enter_context(onebox(self.size))

    def tickets(self, rows: int) -> dict[str, Any]:
        """Describe the listing of the last so many tickets, and of a few before it."""
        return {**tail(self.sandbox, rows), "warm_up": tail(self.sandbox, 1000)}

    def memory(self, key: str, sandbox: Onebox, ways: Ways, **common: Any) -> dict[str, list[float]]:
        """Measure what ways of listing hold at the most, or by how much they grow, in megabytes."""

        def held(way: dict[str, Any]) -> float:
            return float(self.bench.child("listing_memory", sandbox, **{**common, **way})[key]) / 1e6

        return in_turns(self.bench.of(3), {name: partial(held, way) for name, way in ways.items()})

    def imports(self) -> list[Row]:
        """Import the operators."""
        got = self.bench.child("imports", repetitions=self.bench.of(11))
        what = "import `operators.onebox` after `airflow.sdk`"
        return [
            pair(what, got["ours"], got["http"], "importing HttpOperator", 0.05),
            Row("requests, jwt or aiohttp loaded by it", [len(got["heavy"])], unit="modules", bar=0),
        ]

    def info(self) -> list[Row]:
        """Import the provider info."""
        got = self.bench.child("provider_info", repetitions=self.bench.of(31))
        return [
            Row("provider info, import and call", wall(got["ours"]), bar=2),
            Row("modules loaded by it beside its own", [len(got["heavy"])], unit="modules", bar=0),
        ]

    def parsing(self) -> list[Row]:
        """Parse DAG files."""
        got = self.bench.child("parsing", repetitions=self.bench.of(9), tasks=500)
        peer = "500 HttpOperator tasks"
        return [
            pair("parse a DAG file with 500 tasks", got["ours"], got["http"], peer, 1.0),
            # A tie, for four fifths of both are BaseOperator's own: half of the runs are above 1.
            pair("the same again, modules loaded", got["ours_warm"], got["http_warm"], peer, 1.05),
        ]

    def token(self) -> list[Row]:
        """Log in, and ask for the token again."""
        sandbox, rows = self.sandbox, []
        # On loopback, Airflow's masker takes as long for a token as a login does. That happens once a task.
        for latency, where, bars in (
            (LATENCY, f"at {LATENCY * 1000:g} ms of latency", (1.15, None, None)),
            (0, "on loopback", (None, 1.35, 1.15)),
        ):
            sandbox.control("configure", latency=latency)
            got = self.bench.child("cold_token", sandbox, repetitions=self.bench.of(25))
            what = f"cold token {where}"
            rows.append(pair(what, got["ours"], got["bare"], REQUESTS, bars[0]))
            rows.append(pair(f"{what}, before the masker knows it", got["unmasked"], got["bare"], REQUESTS, bars[1]))
            rows.append(pair(what, got["ours"], got["masked"], "requests and mask_secret", bars[2]))
        got = self.bench.child("cached_token", sandbox, repetitions=self.bench.of(31))
        rows.append(Row("cached `get_token()` in a task", wall(got["ours"], 1e6), unit="µs", bar=5))
        return rows

    def calls(self) -> list[Row]:
        """Make small calls."""
        self.sandbox.control("configure", latency=0)
        got = self.bench.child("calls", self.sandbox, repetitions=self.bench.of(25), number=100)
        peer = "requests.Session"
        return [
            pair("`hook.request`, one small call", got["ours"], got["bare"], peer, 1.10),
            pair("the same: HttpHook", got["http"], got["bare"], peer, None),
        ]

    def listing(self) -> list[Row]:
        """List many records behind latency."""
        sandbox, size, rounds = self.sandbox, self.size, self.bench.of(3)
        sandbox.control("configure", latency=LATENCY)
        common = self.tickets(size)
        got = self.bench.child("listing", sandbox, repetitions=rounds, ways=WAYS, **common)
        what = f"list {size:,} records at {LATENCY * 1000:g} ms of latency"
        add_points(self.rows_series, size, got)
        grown = self.memory("growth", sandbox, {name: WAYS[name] for name in ("http", "default")}, **common)
        tuned = self.bench.child("listing", sandbox, repetitions=self.bench.of(5), ways=TUNED, **common)
        return [
            pair(what, tuned["default"], tuned["tuned"], "`page_size=1600, parallelism=4`", 1.25),
            pair(what, got["default"], got["bare"], REQUESTS, 0.35),
            pair(what, got["default"], got["http"], OPERATOR, 0.5),
            Row("the same: peak growth of memory", grown["default"], grown["http"], OPERATOR, "MB", 0.5),
        ]

    def limit(self) -> list[Row]:
        """List many records beside a client that knows all pages beforehand."""
        rows: list[Row] = []
        for ms in (2, 20, 100):
            self.sandbox.control("configure", latency=ms / 1000)
            common, rounds = self.tickets(self.size), self.bench.of(7)
            got = self.bench.child("listing", self.sandbox, repetitions=rounds, ways=IDEAL, **common)
            what, peer = f"list {self.size:,} records at {ms} ms of latency", "an ideal client"
            ours, ideal = ([sample[1] for sample in got[name]] for name in ("default", "ideal"))
            rows.append(pair(what, got["default"], got["ideal"], peer, 1.15))
            rows.append(Row("the same: CPU", ours, ideal, peer, "s", 1.05))
            what = f"OneboxListOperator to .jsonl, {self.size:,} records at {ms} ms of latency"
            rows.append(pair(what, got["file"], got["ideal"], f"{peer} that writes nothing", 1.25))
        return rows

    def servers(self) -> list[Row]:
        """List from servers that are near, far, sparing, slow or strict."""
        sandbox, size, rows = self.sandbox, self.chart_rows, []
        few = tail(sandbox, 20)
        asked = sandbox.control("snapshot")["requests"].get("GET list", 0)
        self.bench.child("listing", sandbox, repetitions=1, ways={"default": {}}, warm_up=few, **few)
        asked = (sandbox.control("snapshot")["requests"]["GET list"] - asked) / 2
        rows.append(Row("list 20 records", [asked], unit="requests", bar=1))
        for words, change in (
            ("at 2 ms of latency", {"latency": 0.002}),
            ("at 100 ms of latency", {"latency": 0.1}),
            ("at 20 ms of latency, at most 100 a page", {"latency": LATENCY, "page_cap": 100}),
            ("at 20 ms for a page of 100, 200 ms for one of 500", {"page_seconds": 0.02}),
        ):
            sandbox.control("reset")
            sandbox.control("configure", **change)
            common = self.tickets(size)
            got = self.bench.child("listing", sandbox, repetitions=self.bench.of(3), ways=CAUTIOUS, **common)
            peer = "`page_size=100, parallelism=2`"
            rows.append(pair(f"list {size:,} records {words}", got["default"], got["cautious"], peer, 1.0))
        most = sandbox.control("snapshot")["max_concurrent"]
        rows.append(Row("the same: most requests in flight", [most], unit="", bar=4))
        for rate in (10, 25, 50):
            size = min(self.bench.of(4_000, 100) * rate, self.size)
            speeds, rejected = [], []
            for _ in range(self.bench.of(3)):
                sandbox.control("reset")
                sandbox.control("configure", latency=LATENCY, page_cap=100, page_rate=rate)
                speeds.append(self.bench.child("settled", sandbox, **tail(sandbox, size)))
                seen = sandbox.control("snapshot")
                rejected.append(100 * seen["rejected_pages"] / seen["requests"]["GET list"])
            what = f"list {size:,} records, {rate} pages a second, 100 a page"
            rows.append(Row(what, speeds, [100 * rate] * len(speeds), "the limit", "records/s", 0.9, at_least=True))
            rows.append(Row("the same: requests rejected", rejected, unit="%", bar=2))
        sandbox.control("reset")
        return rows

    def files(self) -> list[Row]:
        """Write a file of JSON Lines."""
        sandbox, rows = self.sandbox, []
        common = tail(sandbox, self.size)
        for latency, where in ((LATENCY, f"at {LATENCY * 1000:g} ms of latency"), (0, "on loopback")):
            sandbox.control("configure", latency=latency)
            got = self.bench.child("files", sandbox, repetitions=self.bench.of(3), **common)
            rate = {name: [self.size / sample[0] for sample in samples] for name, samples in got.items()}
            cpu = median(s[1] for s in got["ours"]) / median(s[1] for s in got["bare"])
            what = f"OneboxListOperator to .jsonl.gz {where}"
            rows.append(Row(what, rate["ours"], rate["bare"], REQUESTS, "records/s", 1.3, at_least=True, cpu=cpu))
        got_parquet = self.bench.child("parquet", sandbox, repetitions=self.bench.of(7), **common)
        to_parquet = f"{self.size:,} records that have arrived, to .parquet with types"
        rows.append(pair(to_parquet, got_parquet["ours"], got_parquet["pyarrow"], "pyarrow alone", 1.5))
        ours, listed, packed = ([sample[1] for sample in got[name]] for name in ("ours", "listed", "gzip"))
        both = [a + b for a, b in zip(listed, packed, strict=True)]
        return [
            *rows,
            Row(f"{what}: CPU", ours, packed, "gzip alone", "s"),
            # Getting the records takes more than packing them, so gzip alone is no measure of the rest.
            Row(f"{what}: CPU", ours, both, "list_records and gzip", "s", 1.5),
        ]

    def many(self) -> list[Row]:
        """Read the conversations of many tickets, and write as many contacts."""
        self.sandbox.control("configure", latency=LATENCY)
        count, few = self.bench.of(10_000, 100), self.bench.of(500, 50)
        got = self.bench.child("many_calls", self.sandbox, ids=self.sandbox.control("ids")[-count:], few=few)
        where = f"at {LATENCY * 1000:g} ms of latency"
        return [
            Row(f"{what} {where}", got[name], got[f"{name}_bare"], REQUESTS, "/s", bar, at_least=True)
            for what, name, bar in (
                (f"OneboxListConversationsOperator, {count:,} tickets", "read", 3.3),
                (f"OneboxBulkWriteOperator, {count:,} contacts", "written", 3.0),
            )
        ]

    def journal(self) -> list[Row]:
        """Make a single write with its journal, in a task that a real Airflow runs."""
        sys.path.insert(0, str(ROOT / "tests"))
        from support.airflow_home import AirflowHome

        self.sandbox.control("configure", latency=0)
        with tempfile.TemporaryDirectory(prefix="onebox-bench-") as folder:
            file = Path(folder, "samples")
            env = {
                **described(self.sandbox),
                "ONEBOX_BENCH_JOURNAL": str(file),
                "ONEBOX_BENCH_ROUNDS": str(self.bench.of(51, 5)),
                "PYTHONPATH": str(ROOT),
            }
            with AirflowHome(Path(folder, "home"), [ROOT / "benchmarks/dags/journal.py"], env=env) as home:
                home.migrate()
                home.start("api-server", "scheduler", "dag-processor")
                state = home.wait("journal", home.trigger("journal"))
                if state != "success":
                    raise RuntimeError(f"the task that writes with a journal is {state}")
            got = json.loads(file.read_text())
        more = [ours - bare for ours, bare in zip(wall(got["ours"]), wall(got["bare"]), strict=True)]
        return [
            pair("a single write with its journal", got["ours"], got["bare"], "without", None),
            Row("the same: longer by", more, bar=30),
        ]

    def watermark(self) -> list[Row]:
        """Export with a watermark."""
        got = self.bench.child("watermark", repetitions=self.bench.of(31), known=500)
        peer = "without, and one Variable read and written"
        return [pair("incremental export of one record, 500 known runs", got["ours"], got["plain"], peer, 3.5)]

    def flat(self) -> list[Row]:
        """List few and very many records: each costs the same."""
        small, large = self.bench.of(10_000, 1_000), self.bench.of(1_000_000, 20_000)
        with onebox(large) as sandbox:
            ways = {"many": tail(sandbox, large), "few": tail(sandbox, small)}
            got = self.bench.child("flat", sandbox, repetitions=self.bench.of(3), ratio=large // small // 5, **ways)
            held = self.memory("most", sandbox, ways, warm_up=ways["few"])
        what, peer = f"a record of {large:,}", f"a record of {small:,}"
        return [
            pair(f"{what}: time", got["many"], got["few"], peer, 1.1, 1e6, unit="µs"),
            Row(f"{what}: peak memory of the process", held["many"], held["few"], peer, "MB", 1.1),
        ]

    def triggers(self) -> list[Row]:
        """Let triggers wait."""
        self.sandbox.control("configure", latency=0)
        count, interval = self.bench.of(1000, 100), self.bench.of(6)
        wait = partial(self.bench.child, "waiting", self.sandbox, count=count, interval=interval, intervals=2)
        got = in_turns(self.bench.of(2), {who: partial(wait, who=who) for who in ("ours", "apart", "http")})
        peer = "HttpSensorTrigger"

        def row(what: str, key: str, unit: str, scale: float, who: str = "ours", bar: float | None = 0.5) -> Row:
            ours, theirs = ([scale * sample[key] for sample in got[name]] for name in (who, "http"))
            return Row(f"{count:,} waiting triggers: {what}", ours, theirs, peer, unit, bar)

        return [
            row("CPU for one poll of each", "cpu", "s", 1),
            # 0.7 is out of reach: a bare call with `requests` takes most of a poll that asks alone, and preparing the
            # request, the only part that polls repeat for nothing, 0.05 ms.
            row("the same if none can ask together", "cpu", "s", 1, "apart", 1.1),
            row("peak growth of memory", "memory", "MB", 1e-6),
            row("open sockets", "sockets", "", 1),
        ]

    def crowd(self) -> list[Row]:
        """Let very many triggers wait on one core."""
        count, sites = self.bench.of(10_000, 1_000), 200
        got = []
        for _ in range(self.bench.of(3)):
            with onebox(10, "--sites", ",".join(map(str, range(sites)))) as sandbox:
                got.append(self.bench.child("crowd", sandbox, count=count, sites=sites))

        def ms(key: str, share: float = 1) -> list[float]:
            return [1000 * share * float(found[key]) for found in got]

        what = f"{count:,} triggers of {sites} connections on one core, none with another's question"
        return [
            Row(f"{what}: until all have asked", [found["seconds"] for found in got], unit="s", bar=60),
            Row("the same: CPU of a poll", ms("cpu", 1 / count)),
            # A collection of garbage takes longer than the bar in a triggerer without a trigger already.
            Row("the same: event loop blocked at the most, collections of garbage aside", ms("blocked"), bar=50),
            Row("the same: longest collection of garbage", ms("collection"), ms("collection_alone"), "no trigger"),
        ]

    def points(self) -> list[Row]:
        """Collect the chart's points, which have no bars."""
        sandbox = self.sandbox
        sandbox.control("configure", latency=LATENCY)
        rounds = self.bench.of(3)
        for rows in [n for n in (1_000, 10_000, 30_000) if n < self.size]:
            got = self.bench.child("listing", sandbox, repetitions=rounds, ways=WAYS, **self.tickets(rows))
            add_points(self.rows_series, rows, got)
        common = self.tickets(self.chart_rows)
        for latency in (LATENCY,) if self.bench.quick else (0, 0.01, LATENCY, 0.05, 0.1):
            sandbox.control("configure", latency=latency)
            got = self.bench.child("listing", sandbox, repetitions=rounds, ways=WAYS, **common)
            add_points(self.latency_series, latency * 1000, got)
        return []

    @property
    def chart_rows(self) -> int:
        """Records that are listed for each point of latency."""
        return self.bench.of(10_000, 2_000)

    def draw(self) -> str | None:
        """Draw the chart, if its points were measured."""
        if not self.latency_series:
            return None
        rows = {name: sorted([(0, 0), *points]) for name, points in self.rows_series.items()}
        facts = {"latency": f"At {LATENCY * 1000:g} ms of latency", "rows": f"{self.chart_rows:,} records"}
        return chart(rows, self.latency_series, facts)


NAMES = (
    "listing",
    "limit",
    "servers",
    "files",
    "many",
    "journal",
    "watermark",
    "triggers",
    "crowd",
    "token",
    "calls",
    "imports",
    "info",
    "parsing",
    "flat",
    "points",
)


RESULTS = ROOT / "benchmarks/results.md"
PAGES = (ROOT / "README.md", ROOT / "docs/performance.md")


def fill_pages(results: str) -> None:
    """Put the figures of the page of results into the pages that show some of them."""
    for shown in PAGES:
        shown.write_text(fill(shown.read_text(), table_in(results)))


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What the provider costs.")
    parser.add_argument(
        "--quick", action="store_true", help="measure little, and once, to see that it works; writes no file by itself"
    )
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a bar is not reached")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument(
        "--pages", action="store_true", help="measure nothing, put the figures of benchmarks/results.md into the pages"
    )
    parser.add_argument("--results", type=Path, help="where the table goes; benchmarks/results.md after a whole run")
    parser.add_argument("--chart", type=Path, help="where the chart goes; docs/images/benchmark.svg after a whole run")
    options = parser.parse_args()
    if options.pages:
        fill_pages(RESULTS.read_text())
        return 0
    whole = not options.quick and options.only == NAMES
    results = options.results or (RESULTS if whole else None)
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
    written = page(rows)
    sys.stdout.write(written)
    if results:
        results.write_text(written)
    if whole:
        fill_pages(written)
    if image and drawn:
        image.write_text(drawn)
    return int(options.strict and not all(row.reached for row in rows))


if __name__ == "__main__":
    sys.exit(main())
