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
    import airflow.sdk  # noqa: F401 - finds all providers itself

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
    """Sign in, in forks of a process that has everything imported, so that none pays for the secrets of others."""
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

    Each lists a little before: HttpOperator's first call has Airflow look for all hooks, ours signs in.
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
    import logging

    logging.disable(logging.CRITICAL)

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


if __name__ == "__main__":
    result = globals()[sys.argv[1]](**json.loads(sys.argv[2]))
    sys.stdout.write(f"\n{json.dumps(result)}\n")
