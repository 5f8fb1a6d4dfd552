"""The measurements themselves. Each function runs in a separate interpreter and prints its result as JSON."""

from __future__ import annotations

import asyncio
import gc
import gzip
import importlib
import json
import os
import sys
import tempfile
import time
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Nothing of the package, nor what it or HttpOperator would be the first to load: what imports take is measured.
from benchmarks.setting import EMAIL, PASSWORD, Onebox, describe, in_turns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

FORK = get_context("fork")
Sample = tuple[float, float]
"""Seconds of wall time and of CPU time."""


def timed(function: Callable[[], object]) -> Sample:
    """Measure one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - cpu


def interleaved(repetitions: int, contenders: dict[str, Callable[[], object]]) -> dict[str, list[Sample]]:
    """Measure contenders in turns."""

    def measured(contender: Callable[[], object]) -> Sample:
        gc.collect()
        return timed(contender)

    return in_turns(repetitions, {name: partial(measured, contender) for name, contender in contenders.items()})


def repeated(function: Callable[[], object], times: int) -> Callable[[], None]:
    """Return a function that calls another one so many times."""

    def run() -> None:
        for _ in range(times):
            function()

    return run


def each(samples: list[Sample], number: int) -> list[Sample]:
    """Divide samples by the number of things that were measured together."""
    return [(wall / number, cpu / number) for wall, cpu in samples]


def forked(function: Callable[[], Any]) -> Any:
    """Run something in a fork of this process, so that it leaves nothing behind, and return its result."""
    # Else a collection of all that Airflow has loaded, 100 ms, falls to whoever makes the next object.
    gc.collect()
    receive, send = FORK.Pipe(duplex=False)
    process = FORK.Process(target=lambda: send.send(function()))
    process.start()
    send.close()
    # If the fork has failed, with a traceback on stderr, this raises EOFError.
    result = receive.recv()
    process.join()
    return result


def memory(field: str = "VmRSS") -> int:
    """Bytes that this process holds, or, with ``VmHWM``, has held at the most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"this system has no {field}")


def reset_peak() -> int:
    """Forget the most that this process has held; return the bytes that it holds now."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return memory()


def open_files() -> int:
    """Files and sockets that this process has open."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - half the time of a Path for each


def loaded_by(module: str) -> set[str]:
    """Import a module and return what else that loaded."""
    before = set(sys.modules)
    importlib.import_module(module)
    return set(sys.modules) - before


def imports(repetitions: int) -> Any:
    """Import the operators in forks of a process that has what every DAG file imports."""
    from airflow.sdk import DAG  # noqa: F401

    modules = {
        "ours": "airflow_provider_onebox.operators.onebox",
        "http": "airflow.providers.http.operators.http",
    }

    def load(module: str) -> Any:
        return forked(lambda: timed(lambda: importlib.import_module(module)))

    samples = in_turns(repetitions, {name: partial(load, module) for name, module in modules.items()})
    loaded = forked(lambda: sorted(loaded_by(modules["ours"])))
    return {**samples, "heavy": [name for name in ("requests", "jwt", "aiohttp") if name in loaded]}


def provider_info(repetitions: int) -> Any:
    """Import and call what Airflow's discovery does, in forks of a process that has Airflow."""
    from importlib.metadata import entry_points

    import airflow.sdk  # noqa: F401 - finds all providers itself

    for name in [name for name in sys.modules if name.startswith("airflow_provider_onebox")]:
        del sys.modules[name]

    def call() -> None:
        from airflow_provider_onebox.provider_info import get_provider_info

        get_provider_info()

    def called() -> Sample:
        # As Airflow does before it calls any provider; what this caches is lost in a fork.
        entry_points(group="apache_airflow_provider")
        return timed(call)

    def loaded() -> list[str]:
        return [name for name in loaded_by("airflow_provider_onebox.provider_info") if "onebox" not in name]

    samples = [forked(called) for _ in range(repetitions)]
    return {"ours": samples, "heavy": sorted(forked(loaded))}


DAG_FILES = {
    "ours": """from airflow.sdk import DAG
from airflow_provider_onebox.operators.onebox import OneboxRequestOperator

with DAG("ours"):
    for n in range({tasks}):
        OneboxRequestOperator(task_id=f"task_{{n}}", endpoint=f"ticketrz/{{n}}")
""",
    "http": """from airflow.sdk import DAG
from airflow.providers.http.operators.http import HttpOperator

with DAG("http"):
    for n in range({tasks}):
        HttpOperator(task_id=f"task_{{n}}", endpoint=f"api/ticketrz/{{n}}", method="GET")
""",
}


def parsing(repetitions: int, tasks: int) -> Any:
    """Parse DAG files in forks of a process that is as warm as Airflow's own parser."""
    from airflow.dag_processing.dagbag import DagBag
    from airflow.sdk import DAG  # noqa: F401

    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder, f"{name}.py") for name in DAG_FILES}
        for name, text in DAG_FILES.items():
            paths[name].write_text(text.format(tasks=tasks))

        def parse(name: str) -> list[Sample]:
            def work() -> None:
                bag = DagBag(paths[name])
                if bag.import_errors or len(bag.dags[name].tasks) != tasks:
                    raise RuntimeError(str(bag.import_errors))

            # The second time the modules are there: what is left is the tasks themselves.
            return [timed(work), timed(work)]

        got = in_turns(repetitions, {name: partial(forked, partial(parse, name)) for name in paths})
    first = {name: [both[0] for both in rounds] for name, rounds in got.items()}
    return {**first, **{f"{name}_warm": [both[1] for both in rounds] for name, rounds in got.items()}}


def cold_token(repetitions: int) -> Any:
    """Log in, in forks of a process that has everything imported, so that none pays for the secrets of others."""
    import requests
    from airflow.sdk.log import mask_secret

    from airflow_provider_onebox.hooks.onebox import OneboxHook
    from benchmarks.contenders import URL

    form = {"email": EMAIL, "password": PASSWORD, "siteId": "169"}

    def bare() -> str:
        return str(requests.post(f"{URL}/api/authenticate", data=form, timeout=30).json()["token"])

    contenders: dict[str, Callable[[], object]] = {
        "bare": bare,
        "ours": lambda: OneboxHook().get_token(),
        "unmasked": lambda: OneboxHook().client.tokens.get(),
        "masked": lambda: mask_secret(bare()),
    }

    def second(login: Callable[[], object]) -> Sample:
        # The first one in a fork pays for its pages of memory.
        return interleaved(2, {"login": login})["login"][1]

    interleaved(1, contenders)
    # A task try has one token, and each one that is masked makes the masker slower.
    return in_turns(repetitions, {name: partial(forked, partial(second, run)) for name, run in contenders.items()})


def cached_token(repetitions: int) -> Any:
    """Ask for an existing token, as code of a task does."""
    import uuid

    from airflow.sdk.execution_time.context import set_current_context
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    from airflow_provider_onebox.hooks.onebox import OneboxHook

    ti = RuntimeTaskInstance.model_construct(
        id=uuid.uuid4(), dag_id="d", task_id="t", run_id="r", map_index=-1, try_number=1
    )
    number = 10_000
    with set_current_context({"ti": ti}):
        get_token = OneboxHook().get_token
        get_token()
        samples = interleaved(repetitions, {"ours": repeated(get_token, number)})["ours"]
    return {"ours": each(samples, number)}


def calls(repetitions: int, number: int) -> Any:
    """Make one small call many times on a connection that is kept alive."""
    from airflow.providers.http.hooks.http import HttpHook

    from airflow_provider_onebox.hooks.onebox import OneboxHook
    from benchmarks.contenders import TOKEN, BareSession

    hook, session, http_hook = OneboxHook(), BareSession(), HttpHook("GET", "http_bench")
    headers = {"Authorization": f"Bearer {TOKEN}"}
    query = {"limit": 1}
    contenders: dict[str, Callable[[], object]] = {
        "ours": lambda: hook.request("GET", "ticketrz", params=query),
        "bare": lambda: session.call("GET", "ticketrz", params=query),
        "http": lambda: http_hook.run("/api/ticketrz", query, headers).json(),
    }
    for call in contenders.values():
        call()
    samples = interleaved(repetitions, {name: repeated(call, number) for name, call in contenders.items()})
    return {name: each(some, number) for name, some in samples.items()}


def lister(since_id: str, rows: int, who: str = "onebox", **options: int) -> Callable[[], None]:
    """Return one way of listing tickets, ready to run; the options are those of ours."""
    from airflow_provider_onebox.hooks.onebox import OneboxHook
    from benchmarks import contenders

    if who == "file":
        # In a folder that ends with the benchmark.
        return partial(contenders.file_onebox, since_id, f"{os.environ['AIRFLOW_HOME']}/listed.jsonl", rows)
    if who == "onebox":
        return partial(contenders.list_onebox, OneboxHook(), since_id, rows, **options)
    ways = {"bare": contenders.list_bare, "http": contenders.list_operator, "ideal": contenders.list_ideal}
    return partial(ways[who], since_id, rows)


def listing(repetitions: int, ways: dict[str, dict[str, Any]], warm_up: dict[str, Any], **common: Any) -> Any:
    """Time ways of listing, each under a name and with arguments of :func:`lister`.

    Each lists a little before: HttpOperator's first call has Airflow look for all hooks, ours logs in.
    """
    for way in ways.values():
        lister(**{**common, **way, **warm_up})()
    return interleaved(repetitions, {name: lister(**{**common, **way}) for name, way in ways.items()})


def flat(repetitions: int, many: dict[str, Any], few: dict[str, Any], ratio: int) -> Any:
    """Time a row of a long listing beside one of a short one that is repeated until it takes long enough."""
    short = lister(**few)
    short()
    samples = interleaved(repetitions, {"many": lister(**many), "few": repeated(short, ratio)})
    return {"many": each(samples["many"], many["rows"]), "few": each(samples["few"], few["rows"] * ratio)}


def listing_memory(warm_up: dict[str, Any], **way: Any) -> dict[str, int]:
    """Measure the most memory of a process during a listing, and its growth; it has listed a little before."""
    lister(**{**way, **warm_up})()
    run = lister(**way)
    before = reset_peak()
    run()
    return {"most": memory("VmHWM"), "growth": memory("VmHWM") - before}


def settled(since_id: str, rows: int) -> float:
    """List, and return how many records a second arrived in the second half."""
    from airflow_provider_onebox.hooks.onebox import OneboxHook

    hook, given, half = OneboxHook(), 0, (0, 0.0)
    hook.get_token()  # Counting a login imports Airflow's metrics, which a task has done before.
    for batch in hook.list_batches("ticketrz", since_id=since_id):
        given += len(batch.rows)
        if not half[0] and given >= rows / 2:
            half = given, time.monotonic()
    return (given - half[0]) / (time.monotonic() - half[1])


def many_calls(ids: list[str], few: int) -> dict[str, list[float]]:
    """Read the conversations of tickets and write as many contacts, and a few of both singly; return calls a second."""
    from types import SimpleNamespace

    from airflow_provider_onebox.operators.bulk import OneboxBulkWriteOperator
    from airflow_provider_onebox.operators.messages import OneboxListConversationsOperator
    from benchmarks.contenders import BareSession

    session = BareSession()
    names = [f"contact {row_id}" for row_id in ids]
    with tempfile.TemporaryDirectory() as folder:
        read = OneboxListConversationsOperator(task_id="read", tickets=ids, output_path=f"{folder}/read.jsonl")
        rows = [{"name": name} for name in names]
        write = OneboxBulkWriteOperator(task_id="write", kind="contact", rows=rows, results_path=f"{folder}/written")

        def bare_read() -> None:
            with Path(folder, "bare.jsonl").open("w") as file:
                for row_id in ids[:few]:
                    for message in session.call("GET", f"ticket/conversations/{row_id}")["data"]:
                        file.write(json.dumps(message) + "\n")

        context: Any = {"ti": SimpleNamespace(dag_id="d", task_id="write", run_id="r", map_index=-1)}
        runs: dict[str, tuple[int, Callable[[], Any]]] = {
            "read": (len(ids), lambda: read.execute(context)),
            "read_bare": (few, bare_read),
            "written": (len(ids), lambda: write.execute(context)),
            "written_bare": (few, lambda: [session.call("POST", "contactrz", json={"Name": n}) for n in names[:few]]),
        }
        return {name: [calls / timed(run)[0]] for name, (calls, run) in runs.items()}


def watermark(repetitions: int, known: int) -> Any:
    """Export one record with a watermark that knows many runs, and without but with a Variable read and written."""
    from types import SimpleNamespace

    from airflow import settings
    from airflow.models import Variable
    from airflow.models.base import Base

    from airflow_provider_onebox.api.pagination import Batch
    from airflow_provider_onebox.files import watermark as module
    from airflow_provider_onebox.files.export import export, export_incremental
    from airflow_provider_onebox.files.ids import ById, Ids
    from airflow_provider_onebox.files.records import RecordFile
    from airflow_provider_onebox.files.watermark import Watermark

    Base.metadata.create_all(settings.engine)
    # That of the task SDK asks the API server, which is not measured.
    vars(module)["Variable"] = Variable
    ti: Any = SimpleNamespace(
        dag_id="d", task_id="t", run_id="", map_index=-1, try_number=1, get_ti_count=lambda **_: 1
    )
    number = 0

    def listing(after: int, _: int | None) -> list[Batch]:
        # The ids before the watermark are listed again.
        ids = range(after + 1, number + 1)
        return [Batch([{"Id": str(row_id)} for row_id in ids], number, len(ids))]

    with tempfile.TemporaryDirectory() as folder:

        def new_file() -> RecordFile:
            nonlocal number
            number += 1
            ti.run_id = f"scheduled__2026-11-24T00:00:00+00:00_{number}"
            return RecordFile(f"{folder}/{number}.jsonl")

        def incremental() -> Watermark[Ids]:
            mark = Watermark(ti, ("onebox_default", "169", "ticketrz"), ById(listing))
            export_incremental(new_file(), mark, "ticketrz")
            return mark

        def plain() -> None:
            export(new_file(), listing(number, None), number, "ticketrz")
            Variable.set("bench", Variable.get("bench"))

        key = incremental().key
        state = json.loads(Variable.get(key))
        state["runs"] = {
            f"scheduled__2026-11-23T00:00:00+00:00_{n}": [1, n + 1, n + 1, n, [], -1, "0badcafe"] for n in range(known)
        }
        Variable.set(key, json.dumps(state))
        Variable.set("bench", json.dumps(state))
        return interleaved(repetitions, {"ours": incremental, "plain": plain})


def files(repetitions: int, since_id: str, rows: int) -> Any:
    """Write the same rows to gzip JSON Lines."""
    from benchmarks import contenders

    with tempfile.TemporaryDirectory() as folder:
        ours, bare = (f"{folder}/{name}.jsonl.gz" for name in ("ours", "bare"))
        # The first task with a path pays for importing Airflow's object storage.
        contenders.file_onebox(since_id, ours)
        lines = gzip.decompress(Path(ours).read_bytes())
        samples = interleaved(
            repetitions,
            {
                "ours": lambda: contenders.file_onebox(since_id, ours),
                "bare": lambda: contenders.file_bare(since_id, bare),
                "listed": lister(since_id, rows),
                "gzip": lambda: contenders.pack(lines, f"{folder}/packed.gz"),
            },
        )
        theirs = gzip.decompress(Path(bare).read_bytes())
        written = [[json.loads(line) for line in text.splitlines()] for text in (lines, theirs)]
        if written[0] != written[1] or len(written[0]) != rows:
            raise RuntimeError("the files do not hold the same rows")
    return samples


def parquet(repetitions: int, since_id: str, rows: int) -> Any:
    """Write records that have arrived to Parquet, with types."""
    import pyarrow.parquet

    from airflow_provider_onebox.hooks.onebox import OneboxHook
    from benchmarks import contenders

    batches = [batch.rows for batch in OneboxHook().list_batches("ticketrz", since_id=since_id)]
    with tempfile.TemporaryDirectory() as folder:
        ours, alone = f"{folder}/ours.parquet", f"{folder}/alone.parquet"
        contenders.parquet_onebox(batches, ours)
        samples = interleaved(
            repetitions,
            {
                "ours": lambda: contenders.parquet_onebox(batches, ours),
                "pyarrow": lambda: contenders.parquet_pyarrow(batches, alone, ours),
            },
        )
        tables = [pyarrow.parquet.read_table(path) for path in (ours, alone)]
        if not tables[0].equals(tables[1]) or len(tables[0]) != rows:
            raise RuntimeError("the files do not hold the same table")
    return samples


async def start(triggers: Iterable[Any]) -> list[asyncio.Task[None]]:
    """Start triggers that shall wait, all at once, as a triggerer that starts does."""

    async def wait(trigger: Any) -> None:
        async for event in trigger.run():
            raise RuntimeError(f"it should have waited: {event}")

    tasks = []
    for trigger in triggers:
        tasks.append(asyncio.ensure_future(wait(trigger)))
        await asyncio.sleep(0)
    return tasks


async def end(*tasks: asyncio.Task[None]) -> None:
    """End what still has to run, and raise what has ended it if it does not."""
    for task in tasks:
        if task.done():
            task.result()
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def waiting(who: str, count: int, interval: float, intervals: int) -> Any:
    """Let many triggers wait in one event loop, and measure what it costs once all of them do.

    They wait for something in each of the resources, ours for records after an id of each one's own; ``apart`` is
    ours with a time of each one's own beside it, so that no two triggers ask the same.
    """
    from benchmarks.contenders import TOKEN

    resources = ("ticketrz", "contactrz", "prospectrz", "message", "connection")

    def make(n: int) -> Any:
        resource = resources[n % len(resources)]
        if who != "http":
            from airflow_provider_onebox.triggers.onebox import OneboxRecordTrigger

            since = f"2026-01-{n // 1440 + 1:02d} {n // 60 % 24:02d}:{n % 60:02d}" if who == "apart" else None
            return OneboxRecordTrigger(resource, since_id=999_000_000 + n, since=since, poke_interval=interval)
        from airflow.providers.http.triggers.http import HttpSensorTrigger

        headers = {"Authorization": f"Bearer {TOKEN}"}
        return HttpSensorTrigger(f"/api/{resource}/{n + 1}", "http_bench", headers=headers, poke_interval=interval)

    async def scenario() -> dict[str, float]:
        warm = await start([make(count)])
        await asyncio.sleep(1)
        await end(*warm)
        before, files = reset_peak(), open_files()
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, open_files() - files)
                await asyncio.sleep(0.05)

        watcher = asyncio.ensure_future(watch())
        tasks = await start(make(n) for n in range(count))
        await asyncio.sleep(interval * 1.5)
        await end(watcher)
        begun, cpu = time.monotonic(), time.process_time()
        await asyncio.sleep(interval * intervals)
        spent = (time.process_time() - cpu) * interval / (time.monotonic() - begun)
        await end(*tasks)
        return {"cpu": spent, "memory": memory("VmHWM") - before, "sockets": most}

    return asyncio.run(scenario())


def crowd(count: int, sites: int) -> Any:
    """Let very many triggers wait that can't ask together, on one core; measure when all have asked, and what blocked.

    Python stops all threads to collect garbage, the longer the more objects Airflow has: that is measured separately.
    """
    import airflow.jobs.triggerer_job_runner  # noqa: F401 - so that there is what there is in a triggerer

    from airflow_provider_onebox.triggers.onebox import OneboxRecordTrigger
    from benchmarks.contenders import URL

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.environ.update({f"AIRFLOW_CONN_CRM_{n}": describe(URL, str(n)) for n in range(sites)})
    triggers = [
        OneboxRecordTrigger(
            "ticketrz",
            since_id=999_000_000,
            since=f"20{n // 600 + 10}-01-{n // 24 % 25 + 1:02d} {n % 24:02d}:00",
            poke_interval=60,
            onebox_conn_id=f"crm_{n % sites}",
        )
        for n in range(count)
    ]
    books = Onebox(URL)
    collections: list[tuple[float, float]] = []
    began = 0.0

    def collecting(phase: str, _: Any) -> None:
        nonlocal began
        if phase == "start":
            began = time.monotonic()
        else:
            collections.append((began, time.monotonic()))

    def aside(start: float, end: float) -> float:
        inside = (min(end, last) - max(start, first) for first, last in collections)
        return end - start - sum(seconds for seconds in inside if seconds > 0)

    async def scenario() -> dict[str, float]:
        blocked: list[tuple[float, float]] = []

        async def watch() -> None:
            while True:
                due = time.monotonic() + 0.001
                await asyncio.sleep(0.001)
                blocked.append((due, time.monotonic()))

        gc.callbacks.append(collecting)
        gc.collect()
        alone, *_ = collections
        watcher = asyncio.ensure_future(watch())
        begun, cpu = time.monotonic(), time.process_time()
        tasks = await start(triggers)
        while (await asyncio.to_thread(books.control, "snapshot"))["requests"].get("GET list", 0) < count:
            if time.monotonic() - begun > 120:
                raise RuntimeError("not all have asked within 120 s")
            await asyncio.sleep(0.5)
        seconds, cpu = time.monotonic() - begun, time.process_time() - cpu
        gc.callbacks.remove(collecting)
        found = {
            "seconds": seconds,
            "cpu": cpu,
            "blocked": max(aside(*span) for span in blocked),
            "collection": max(end - start for start, end in collections),
            "collection_alone": alone[1] - alone[0],
        }
        await end(watcher, *tasks)
        return found

    return asyncio.run(scenario())


if __name__ == "__main__":
    result = globals()[sys.argv[1]](**json.loads(sys.argv[2]))
    sys.stdout.write(f"\n{json.dumps(result)}\n")
