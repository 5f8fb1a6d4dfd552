"""The measurements themselves. Each function runs in an interpreter of its own and prints its result as JSON."""

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
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

Sample = tuple[float, float]
"""Seconds of wall time and of CPU time."""


def timed(function: Callable[[], object]) -> Sample:
    """Measure one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - cpu


def interleaved(repetitions: int, contenders: dict[str, Callable[[], object]]) -> dict[str, list[Sample]]:
    """Measure contenders in turns, each round beginning with another one."""
    samples: dict[str, list[Sample]] = {name: [] for name in contenders}
    names = list(contenders)
    for n in range(repetitions):
        for name in names[n % len(names) :] + names[: n % len(names)]:
            gc.collect()
            samples[name].append(timed(contenders[name]))
    return samples


def forked(function: Callable[[], Any]) -> Any:
    """Run something in a fork of this process, so that it leaves nothing behind, and return its JSON."""
    # Else a collection of all that Airflow has loaded, 100 ms, falls to whoever makes the next object.
    gc.collect()
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with os.fdopen(send, "w") as pipe:
                json.dump(function(), pipe)
            code = 0
        except BaseException:  # noqa: BLE001 - nothing of the parent's may run in the fork
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(send)
    with os.fdopen(receive) as pipe:
        text = pipe.read()
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("a fork failed")
    return json.loads(text)


def memory(field: str = "VmRSS") -> int:
    """Bytes that this process holds, or, with ``VmHWM``, has held at the most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"this system does not tell {field}")


def peak(function: Callable[[], object]) -> int:
    """Bytes by which this process grew at the most during a call."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = memory()
    function()
    return memory("VmHWM") - before


def open_files() -> int:
    """Files and sockets that this process has open."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - half the time of a Path for each


def loaded_by(module: str) -> set[str]:
    """Import a module and tell what else that loaded."""
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
    contenders = {
        name: lambda module=module: forked(lambda: timed(lambda: importlib.import_module(module)))
        for name, module in modules.items()
    }
    samples: dict[str, list[Sample]] = {name: [] for name in modules}
    for _ in range(repetitions):
        for name, run in contenders.items():
            samples[name].append(run())
    loaded = forked(lambda: sorted(loaded_by(modules["ours"])))
    return {**samples, "heavy": [name for name in ("requests", "jwt", "aiohttp") if name in loaded]}


def provider_info(repetitions: int) -> Any:
    """Import and call what Airflow's discovery does, in forks of a process that has Airflow."""
    from importlib.metadata import entry_points

    import airflow.sdk  # noqa: F401 - finds all providers itself

    entry_points(group="apache_airflow_provider")  # As Airflow does before it calls any of them.
    for name in [name for name in sys.modules if name.startswith("airflow_provider_onebox")]:
        del sys.modules[name]

    def call() -> None:
        from airflow_provider_onebox.provider_info import get_provider_info

        get_provider_info()

    def loaded() -> list[str]:
        return [name for name in loaded_by("airflow_provider_onebox.provider_info") if "onebox" not in name]

    samples = [forked(lambda: timed(call)) for _ in range(repetitions)]
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

        rounds = [{name: forked(lambda name=name: parse(name)) for name in paths} for _ in range(repetitions)]
    return {
        **{name: [both[name][0] for both in rounds] for name in paths},
        **{f"{name}_warm": [both[name][1] for both in rounds] for name in paths},
    }


def cold_token(repetitions: int, url: str, **_: Any) -> Any:
    """Log in, in forks of a process that has everything imported, so that none pays for the secrets of others."""
    import requests
    from airflow.providers.http.hooks.http import HttpHook
    from airflow.sdk.log import mask_secret

    from airflow_provider_onebox.hooks.onebox import OneboxHook
    from benchmarks.setting import EMAIL, PASSWORD

    form = {"email": EMAIL, "password": PASSWORD, "siteId": "169"}

    def bare() -> str:
        return str(requests.post(f"{url}/api/authenticate", data=form, timeout=30).json()["token"])

    def http() -> str:
        return str(HttpHook("POST", "http_bench").run("/api/authenticate", data=form).json()["token"])

    # A task run has one token, and each one that is masked makes the masker slower: those who mask get forks of
    # their own. The first round in a fork pays for its pages of memory.
    groups: list[dict[str, Callable[[], object]]] = [
        {"bare": bare, "http": http},
        {"ours": lambda: OneboxHook().get_token()},
        {"unmasked": lambda: OneboxHook().client.tokens.get()},
        {"masked": lambda: mask_secret(bare())},
    ]
    for group in groups:
        interleaved(1, group)
    samples: dict[str, list[Sample]] = {name: [] for group in groups for name in group}
    for _ in range(repetitions):
        for group in groups:
            for name, some in forked(lambda group=group: interleaved(2, group)).items():
                samples[name] += some[1:]
    return samples


def cached_token(repetitions: int, **_: Any) -> Any:
    """Ask for a token that is there, as code of a task does."""
    import uuid

    from airflow.sdk.execution_time.context import set_current_context
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    from airflow_provider_onebox.hooks.onebox import OneboxHook

    ti = RuntimeTaskInstance.model_construct(
        id=uuid.uuid4(), dag_id="d", task_id="t", run_id="r", map_index=-1, try_number=1
    )
    calls = 10_000

    def many() -> None:
        for _ in range(calls):
            get_token()

    with set_current_context({"ti": ti}):
        get_token = OneboxHook().get_token
        get_token()
        samples = interleaved(repetitions, {"ours": many})["ours"]
    return {"ours": [(wall / calls, cpu / calls) for wall, cpu in samples]}


def calls(repetitions: int, calls: int, url: str, token: str) -> Any:
    """Make one small call many times on a connection that is kept alive."""
    from airflow.providers.http.hooks.http import HttpHook

    from airflow_provider_onebox.hooks.onebox import OneboxHook
    from benchmarks.contenders import bare_session

    hook, session = OneboxHook(), bare_session(token)
    http_hook = HttpHook("GET", "http_bench")
    headers = {"Authorization": f"Bearer {token}"}
    query = {"limit": 1}

    def bare() -> None:
        response = session.get(f"{url}/api/ticketrz", params=query, timeout=30)
        response.raise_for_status()
        response.json()

    contenders = {
        "ours": lambda: hook.request("GET", "ticketrz", params=query),
        "bare": bare,
        "http": lambda: http_hook.run("/api/ticketrz", query, headers).json(),
    }

    def many(call: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(calls):
                call()

        return run

    for call in contenders.values():
        call()
    samples = interleaved(repetitions, {name: many(call) for name, call in contenders.items()})
    return {name: [(wall / calls, cpu / calls) for wall, cpu in some] for name, some in samples.items()}


def lister(name: str, url: str, token: str, resource: str, since_id: str, page: int, rows: int) -> Callable[[], None]:
    """Return one way of listing, ready to run; ``onebox-500-4`` is ours with that page size and parallelism."""
    from benchmarks import contenders

    if name == "bare":
        return lambda: contenders.list_bare(url, token, resource, since_id, page, rows)
    if name == "http":
        return lambda: contenders.list_operator(token, resource, since_id, page, rows)
    from airflow_provider_onebox.hooks.onebox import OneboxHook

    hook = OneboxHook()
    options = dict(zip(("page_size", "parallelism"), map(int, name.split("-")[1:]), strict=False))
    return lambda: contenders.list_onebox(hook, resource, since_id, rows, **options)


def listing(repetitions: int, ways: dict[str, dict[str, Any]], warm_up: dict[str, Any], **common: Any) -> Any:
    """Time ways of listing, each under a name and with arguments of :func:`lister`.

    Each lists a little before: HttpOperator's first call has Airflow look for all hooks, ours logs in.
    """
    for way in ways.values():
        lister(**{**common, **way, **warm_up})()
    runs = {name: lister(**{**common, **way}) for name, way in ways.items()}
    return interleaved(repetitions, runs)


def flat(repetitions: int, ways: dict[str, dict[str, Any]], ratio: int, **common: Any) -> Any:
    """Time a row of a long listing beside one of a short one that is repeated until it takes long enough."""
    rows = {name: way["rows"] for name, way in ways.items()}
    runs = {name: lister(**{**common, **way}) for name, way in ways.items()}

    def repeated() -> None:
        for _ in range(ratio):
            runs["few"]()

    runs["few"]()
    samples = interleaved(repetitions, {"many": runs["many"], "few": repeated})
    rows["few"] *= ratio
    return {name: [(wall / rows[name], cpu / rows[name]) for wall, cpu in some] for name, some in samples.items()}


def listing_memory(way: dict[str, Any], warm_up: dict[str, Any], *, total: bool = False, **common: Any) -> Any:
    """Tell by how much a listing makes a process grow that has listed a little before, or what it holds at the most."""
    lister(**{**common, **way, **warm_up})()
    grown = peak(lister(**{**common, **way}))
    return memory("VmHWM") if total else grown


def settled(resource: str, since_id: str, rows: int, **_: Any) -> float:
    """List, and tell how many rows a second the second half of them came at."""
    from airflow_provider_onebox.hooks.onebox import OneboxHook

    given, half = 0, (0, 0.0)
    for batch in OneboxHook().list_batches(resource, since_id=since_id):
        given += len(batch.rows)
        if not half[0] and given >= rows / 2:
            half = given, time.monotonic()
    return (given - half[0]) / (time.monotonic() - half[1])


def many_calls(ids: list[str], few: int, url: str, token: str) -> dict[str, list[float]]:
    """Read the conversations of tickets and write as many contacts, and a few of both one by one; tell the pace."""
    from types import SimpleNamespace

    from airflow_provider_onebox.operators.bulk import OneboxBulkWriteOperator
    from airflow_provider_onebox.operators.messages import OneboxListConversationsOperator
    from benchmarks.contenders import bare_session

    session = bare_session(token)
    names = [f"contact {row_id}" for row_id in ids]

    def bare(method: str, endpoint: str, **options: Any) -> Any:
        response = session.request(method, f"{url}/api/{endpoint}", timeout=30, **options)
        response.raise_for_status()
        return response.json()

    with tempfile.TemporaryDirectory() as folder:
        read = OneboxListConversationsOperator(task_id="read", tickets=ids, output_path=f"{folder}/read.jsonl")
        rows = [{"name": name} for name in names]
        write = OneboxBulkWriteOperator(task_id="write", kind="contact", rows=rows, verdict_path=f"{folder}/written")

        def bare_read() -> None:
            with Path(folder, "bare.jsonl").open("w") as file:
                for row_id in ids[:few]:
                    for message in bare("GET", f"ticket/conversations/{row_id}")["data"]:
                        file.write(json.dumps(message) + "\n")

        context: Any = {"ti": SimpleNamespace(dag_id="d", task_id="write", run_id="r", map_index=-1)}
        runs: dict[str, tuple[int, Callable[[], Any]]] = {
            "read": (len(ids), lambda: read.execute(context)),
            "read_bare": (few, bare_read),
            "written": (len(ids), lambda: write.execute(context)),
            "written_bare": (few, lambda: [bare("POST", "contactrz", json={"Name": n}) for n in names[:few]]),
        }
        return {name: [calls / timed(run)[0]] for name, (calls, run) in runs.items()}


def watermark(repetitions: int, known: int) -> Any:
    """Export one record with a watermark that knows many runs, and without but with a Variable read and written."""
    from types import SimpleNamespace

    from airflow import settings
    from airflow.models import Variable
    from airflow.models.base import Base

    from airflow_provider_onebox import export
    from airflow_provider_onebox.files import RecordFile
    from airflow_provider_onebox.paging import Batch

    Base.metadata.create_all(settings.engine)
    # That of the task SDK asks the API server, which is not measured.
    vars(export)["Variable"] = Variable
    ti = SimpleNamespace(dag_id="d", task_id="t", run_id="", map_index=-1, try_number=1, get_ti_count=lambda **_: 1)
    number = 0

    def listing(after: int, _: int | None) -> list[Batch]:
        return [Batch([{"Id": str(after + 1)}], after + 1, 1)]

    with tempfile.TemporaryDirectory() as folder:

        def run(watermark: export.Watermark | None) -> None:
            nonlocal number
            number += 1
            ti.run_id = f"scheduled__2026-11-24T00:00:00+00:00_{number}"
            export.export(RecordFile(f"{folder}/{number}.jsonl"), listing, 0, watermark)

        def incremental() -> None:
            run(export.Watermark({"ti": ti}, [], ("onebox_default", "169", "ticketrz")))  # type: ignore[typeddict-item]

        def plain() -> None:
            run(None)
            Variable.set("bench", Variable.get("bench"))

        incremental()
        key = export.Watermark({"ti": ti}, [], ("onebox_default", "169", "ticketrz")).key  # type: ignore[typeddict-item]
        state = json.loads(Variable.get(key))
        state["runs"] = {f"scheduled__2026-11-23T00:00:00+00:00_{n}": [n, n + 1] for n in range(known)}
        Variable.set(key, json.dumps(state))
        Variable.set("bench", json.dumps(state))
        return interleaved(repetitions, {"ours": incremental, "plain": plain})


def files(repetitions: int, url: str, token: str, resource: str, since_id: str, page: int, rows: int) -> Any:
    """Write the same rows to gzip JSON Lines."""
    from benchmarks import contenders

    with tempfile.TemporaryDirectory() as folder:
        paths = {name: str(Path(folder, f"{name}.jsonl.gz")) for name in ("ours", "bare")}
        # The first task with a path pays for importing Airflow's object storage, whatever it writes.
        contenders.file_onebox(resource, since_id, paths["ours"], max_records=1)
        samples = interleaved(
            repetitions,
            {
                "ours": lambda: contenders.file_onebox(resource, since_id, paths["ours"]),
                "bare": lambda: contenders.file_bare(url, token, resource, since_id, page, paths["bare"]),
            },
        )
        lines = gzip.decompress(Path(paths["ours"]).read_bytes())
        run = lister("onebox", url, token, resource, since_id, page, rows)
        samples["listed"] = interleaved(repetitions, {"listed": run})["listed"]
        samples["gzip"] = interleaved(repetitions, {"gzip": lambda: contenders.pack(lines, f"{folder}/packed.gz")})[
            "gzip"
        ]
        written = []
        for path in paths.values():
            with gzip.open(path, "rt", encoding="utf-8") as file:
                written.append([json.loads(line) for line in file])
        if written[0] != written[1] or len(written[0]) != rows:
            raise RuntimeError("the files do not hold the same rows")
    return samples


def waiting(who: str, count: int, interval: float, intervals: int, token: str, **_: Any) -> Any:
    """Let many triggers wait in one event loop, and tell what it costs once all of them do.

    They wait for something in each of the resources, ours for records after an id of each one's own; ``apart`` is
    ours with a time of each one's own beside it, so that no two triggers ask the same.
    """
    resources = ("ticketrz", "contactrz", "prospectrz", "message", "connection")

    def make(n: int) -> Any:
        resource = resources[n % len(resources)]
        if who != "http":
            from airflow_provider_onebox.triggers.onebox import OneboxRecordTrigger

            since = f"2026-01-{n // 1440 + 1:02d} {n // 60 % 24:02d}:{n % 60:02d}" if who == "apart" else None
            return OneboxRecordTrigger(resource, since_id=999_000_000 + n, since=since, poke_interval=interval)
        from airflow.providers.http.triggers.http import HttpSensorTrigger

        headers = {"Authorization": f"Bearer {token}"}
        return HttpSensorTrigger(f"/api/{resource}/{n + 1}", "http_bench", headers=headers, poke_interval=interval)

    async def first(trigger: Any) -> None:
        async for event in trigger.run():
            raise RuntimeError(f"it should have waited: {event}")

    async def scenario() -> dict[str, float]:
        warm = asyncio.ensure_future(first(make(count)))
        await asyncio.sleep(1)
        warm.cancel()
        await asyncio.gather(warm, return_exceptions=True)
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
        before, files = memory(), open_files()
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, open_files() - files)
                await asyncio.sleep(0.05)

        watcher = asyncio.ensure_future(watch())
        # A triggerer that starts begins with all of them at once.
        tasks = []
        for n in range(count):
            tasks.append(asyncio.ensure_future(first(make(n))))
            await asyncio.sleep(0)
        await asyncio.sleep(interval * 1.5)
        watcher.cancel()
        start, cpu = time.monotonic(), time.process_time()
        await asyncio.sleep(interval * intervals)
        spent = (time.process_time() - cpu) * interval / (time.monotonic() - start)
        for task in tasks:
            if task.done():
                task.result()
            task.cancel()
        await asyncio.gather(*tasks, watcher, return_exceptions=True)
        return {"cpu": spent, "memory": memory("VmHWM") - before, "sockets": most}

    return asyncio.run(scenario())


def crowd(count: int, sites: int, url: str, **_: Any) -> Any:
    """Let very many triggers wait that can't ask together, on one core; tell when all have asked, and what blocked.

    Python stops all threads to collect garbage, the longer the more objects Airflow has: that is told apart.
    """
    import airflow.jobs.triggerer_job_runner  # noqa: F401 - so that there is what there is in a triggerer

    from airflow_provider_onebox.triggers.onebox import OneboxRecordTrigger
    from benchmarks.setting import Onebox, describe

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.environ.update({f"AIRFLOW_CONN_CRM_{n}": describe(url, str(n)) for n in range(sites)})
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
    books = Onebox(url)
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
        start, cpu = time.monotonic(), time.process_time()
        tasks = []
        for trigger in triggers:
            tasks.append(asyncio.ensure_future(anext(trigger.run())))
            await asyncio.sleep(0)
        while (await asyncio.to_thread(books.control, "snapshot"))["requests"].get("GET list", 0) < count:
            if time.monotonic() - start > 120:
                raise RuntimeError("not all have asked within 120 s")
            await asyncio.sleep(0.5)
        seconds, cpu = time.monotonic() - start, time.process_time() - cpu
        gc.callbacks.remove(collecting)
        found = {
            "seconds": seconds,
            "cpu": cpu,
            "blocked": max(aside(*span) for span in blocked),
            "collection": max(end - start for start, end in collections),
            "collection_alone": alone[1] - alone[0],
        }
        for task in (watcher, *tasks):
            if task.done():
                task.result()
            task.cancel()
        await asyncio.gather(watcher, *tasks, return_exceptions=True)
        return found

    return asyncio.run(scenario())


if __name__ == "__main__":
    result = globals()[sys.argv[1]](**json.loads(sys.argv[2]))
    sys.stdout.write(f"\n{json.dumps(result)}\n")
