"""Measure OneboxListOperator on 200,000 tickets, and kill it: ``python benchmarks/listing.py``.

Prints a table; ends with 1 if a record is missing or comes twice, or if memory grows with the number of records.
Needs Linux, and the extra ``sandbox``.
"""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

RECORDS = 200_000
FEWER = 20_000
NEW = 1_000
KILLS = 12
MAX_GROWTH_MB = 5.0
"""How much more memory ten times the records may take; what allocators do by chance is below it."""

EMAIL, PASSWORD = "agent@example.com", "open sesame"


# --- the parent


@contextmanager
def sandbox() -> Iterator[str]:
    """Run a sandbox in a process of its own, with every row made, and give its URL."""
    command = [sys.executable, "-m", "airflow_provider_onebox.sandbox", f"--records={RECORDS}", "--sites=169"]
    options = [f"--email={EMAIL}", f"--password={PASSWORD}"]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout  # noqa: S101 - for the type checker
        url = process.stdout.readline().strip()
        try:
            control(url, "warm", count=RECORDS)
            yield url
        finally:
            process.terminate()


def control(url: str, call: str, **arguments: Any) -> Any:
    """Call the sandbox's control."""
    request = urllib.request.Request(f"{url}/sandbox/{call}", json.dumps(arguments).encode(), method="POST")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=60) as response:
        return json.load(response)


class Child:
    """A process that runs the operator once.

    :param how: ``spawn`` for an interpreter of its own, ``fork`` for one that has all modules already.
    """

    def __init__(self, how: str, **job: Any) -> None:
        context: Any = multiprocessing.get_context(how)
        self.reports, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=work, args=(theirs,), kwargs=job)
        self.process.start()
        theirs.close()
        self.reports.recv()  # it begins now

    def finish(self) -> dict[str, Any]:
        """Wait for the end and return the figures."""
        found: dict[str, Any] = self.reports.recv()
        self.process.join()
        return found


def ids_in(path: Path) -> list[str]:
    """Return the ids in a file."""
    with gzip.open(path, "rb") as file:
        return [json.loads(line)["Id"] for line in file]


def measure(url: str, folder: Path, count: int) -> tuple[dict[str, Any], bool]:
    """List the first so many tickets into a file; tell what it took, and whether the file is right."""
    path = folder / f"{count}.jsonl.gz"
    found = Child("spawn", path=str(path), max_records=count).finish()
    return found, ids_in(path) == control(url, "ids")[:count]


def kill_and_go_on(url: str, folder: Path, kill: str | float) -> tuple[bool, bool]:
    """List, add tickets, kill a run, add tickets, list; tell whether a file was there, and whether all is right.

    :param kill: seconds after the start, or the step before which it is killed.
    """
    folder.mkdir()
    new = control(url, "add", count=10)
    job = {"since_id": str(int(new[0]) - 1), "store": str(folder / "mark"), "page_size": 20}
    paths = [folder / f"{n}.jsonl.gz" for n in range(3)]
    Child("fork", path=str(paths[0]), run_id="0", **job).finish()
    new += control(url, "add", count=NEW)
    killed = Child("fork", path=str(paths[1]), run_id="1", kill=kill if isinstance(kill, str) else None, **job).process
    if not isinstance(kill, str):
        time.sleep(kill)
        killed.kill()
    killed.join()
    there = paths[1].exists()
    new += control(url, "add", count=10)
    Child("fork", path=str(paths[2]), run_id="2", **job).finish()
    listed = [row_id for path in paths if path.exists() for row_id in ids_in(path)]
    return there, listed == new and killed.exitcode in (0, -signal.SIGKILL)


def main() -> int:
    """Measure, and print."""
    right = True
    with tempfile.TemporaryDirectory(prefix="onebox-bench-") as name, sandbox() as url:
        folder = Path(name)
        fields = {"conn_type": "onebox", "host": url, "login": EMAIL, "password": PASSWORD}
        fields["extra"] = {"site_id": "169"}
        os.environ |= {
            "AIRFLOW_CONN_ONEBOX_DEFAULT": json.dumps(fields),
            "AIRFLOW_HOME": f"{name}/airflow",
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
        }
        print(f"{'records':>9} {'written':>9} {'seconds':>8} {'records/s':>10} {'idle MB':>8} {'peak above MB':>14}")
        peaks = []
        for count in (FEWER, RECORDS):
            found, whole = measure(url, folder, count)
            right &= whole and found["count"] == count
            peaks.append(found["peak"])
            rate = found["count"] / found["seconds"]
            line = f"{count:>9,} {found['count']:>9,} {found['seconds']:>8.1f} {rate:>10,.0f} {found['idle']:>8.1f}"
            print(f"{line} {found['peak']:>14.1f}{'' if whole else '  NOT WHAT IS THERE'}")
        if peaks[1] - peaks[0] > MAX_GROWTH_MB:
            right = False
            print("MEMORY GROWS with the number of records.")

        import airflow_provider_onebox.operators.onebox  # noqa: F401 - for the forked ones

        begin = control(url, "ids")[-1 - NEW]
        job = {"since_id": begin, "store": f"{name}/mark", "page_size": 20, "run_id": "0"}
        seconds = Child("fork", path=f"{name}/time.jsonl.gz", **job).finish()["seconds"]
        draw = random.Random()  # noqa: S311 - any points will do
        # The last steps are too short to be met by chance.
        points: list[str | float] = ["put_in_place", "move", *(draw.uniform(0, 1.1 * seconds) for _ in range(KILLS))]
        there = bad = 0
        for n, kill in enumerate(points):
            file, whole = kill_and_go_on(url, folder / f"kill-{n}", kill)
            there += file
            bad += not whole
            if not whole:
                print(f"LOST OR TWICE, killed at {kill}")
        print(
            f"{NEW:,} new tickets ({seconds:.2f} s), a run killed at {len(points)} points: {there} times its file was "
            f"there, {len(points) - there} times not; lost or twice: {bad}"
        )
    return 0 if right and not bad else 1


# --- the child


class Variables:
    """Airflow's Variables, of which there is one here, in a file."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def get(self, key: str, default: str | None) -> str | None:
        """Read the watermark."""
        return self.path.read_text() if key.startswith("onebox_watermark") and self.path.exists() else default

    def set(self, _: str, value: str) -> None:
        """Write the watermark, at once as a database does."""
        new = self.path.with_suffix(".new")
        new.write_text(value)
        new.replace(self.path)


def memory(name: str) -> float:
    """Return a figure of this process's memory in MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def work(
    reports: Connection,
    path: str,
    run_id: str = "",
    store: str | None = None,
    kill: str | None = None,
    since_id: str = "0",
    **options: Any,
) -> None:
    """Run the operator once, as a task does; report the start, and the figures at the end."""
    from airflow_provider_onebox import export, files
    from airflow_provider_onebox.operators.onebox import OneboxListOperator

    def die(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    ti = SimpleNamespace(dag_id="bench", task_id="list", run_id=run_id, map_index=-1, get_ti_count=lambda **_: 1)
    context: Any = {"ti": ti}
    vars(export)["Variable"] = Variables(store or "")
    warm = OneboxListOperator(task_id="warm", resource="ticketrz", max_records=1, output_path=f"{path}.warm")
    warm.execute(context)
    if kill:
        setattr(files.RecordFile if kill == "put_in_place" else export.Watermark, kill, die)
    task = OneboxListOperator(
        task_id="list", resource="ticketrz", output_path=path, since_id=since_id, incremental=bool(store), **options
    )
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    idle = memory("VmRSS")
    reports.send("go")
    start = time.perf_counter()
    count = task.execute(context)["count"]
    seconds = time.perf_counter() - start
    reports.send({"count": count, "seconds": seconds, "idle": idle, "peak": memory("VmHWM") - idle})


if __name__ == "__main__":
    sys.exit(main())
