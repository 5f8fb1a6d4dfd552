"""Run the quick start's DAG in a real Airflow against a local Onebox, and show the file that it writes.

With ``--keep``, Airflow and Onebox go on until Ctrl-C, with a page to look at. Other arguments go to the sandbox:
``--records 5``, or ``--set outside_service_hours=true`` to see a failure.
"""

from __future__ import annotations

import json
import os
import platform
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.airflow_home import AirflowHome, AirflowHomeError  # noqa: E402 - a helper of the tests, not in the package

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.airflow_home import Run

DAG = "example_onebox_quick_start"
EMAIL, PASSWORD, SITE = "demo@example.com", "demo p&ss=w%rd", "169"


def say(name: str, text: object) -> None:
    """Print a line of the report."""
    print(f"{name:<13}{text}", flush=True)  # noqa: T201


@contextmanager
def sandbox(options: list[str]) -> Iterator[str]:
    """Run the sandbox as a separate process and return its address."""
    command = [sys.executable, "-m", "airflow_provider_onebox.sandbox", "--email", EMAIL, "--password", PASSWORD]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().strip() if process.stdout else ""
            if not url:
                raise AirflowHomeError("The sandbox did not start.")
            yield url
        finally:
            process.terminate()


def counters(url: str) -> dict[str, Any]:
    """Return what the sandbox has counted."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{url}/sandbox/snapshot", timeout=10) as response:
        seen: dict[str, Any] = json.load(response)
    return seen


def demo(folder: Path, url: str, *, keep: bool) -> None:
    """Run the DAG and print the report; to keep Airflow, wait for Ctrl-C then.

    :raises AirflowHomeError: if anything goes wrong; the message has the end of Airflow's output.
    """
    say("Airflow", f"{version('apache-airflow')} on Python {platform.python_version()}, in a temporary folder")
    say("Onebox", f"a sandbox at {url}")
    connection = {"conn_type": "onebox", "host": url, "login": EMAIL, "password": PASSWORD}
    connection["extra"] = json.dumps({"site_id": SITE})
    connections = {"onebox_default": json.dumps(connection)}
    examples = ROOT / "example_dags"
    # The examples write where temporary files go.
    options: dict[str, Any] = {"env": {"TMPDIR": str(folder)}}
    if keep:
        options |= {"password": secrets.token_urlsafe(12), "config": {("core", "dags_are_paused_at_creation"): True}}
    with AirflowHome(folder, [examples / f"{DAG}.py"], connections=connections, **options) as home:
        report(home.test_dag(DAG, {"folder": str(folder)}), url)
        if keep:
            shutil.copytree(examples, home.home / "dags", dirs_exist_ok=True)
            home.start("api-server", "scheduler", "dag-processor", "triggerer")
            say("Page", f"{home.url}, user admin, password {options['password']}")
            say("", "It has all examples. Press Ctrl-C to end Airflow and Onebox.")
            with suppress(KeyboardInterrupt):
                signal.pause()


def report(run: Run, url: str) -> None:
    """Print what a run did.

    :raises AirflowHomeError: if it failed, or Onebox got other calls than expected.
    """
    states = ", ".join(f"{task} {state}" for (task, _), state in sorted(run.tasks.items()))
    say("DAG", f"{DAG}: {run.state} ({states})")
    if run.state != "success":
        raise AirflowHomeError(f"{DAG} ended as {run.state}:\n{what_failed(run.output)}")

    seen = counters(url)
    expected = {"POST authenticate": 1, "GET list": 1}
    if seen["requests"] != expected:
        raise AirflowHomeError(f"Onebox got the requests {seen['requests']}, not {expected}.")
    (user,), (site,) = seen["logins_by_user"], seen["logins_by_site"]
    written, tickets = run.xcoms["list_tickets", -1, "return_value"], run.xcoms["show", -1, "return_value"]
    say("Logged in", f"once, as {user} for site {site}; the token stayed inside the task")
    say("Wrote", f"{written['count']} tickets to {written['path']}")
    for ticket in tickets:
        say("", f"{ticket['Id']:<8}{ticket['Subject']:<34}{ticket['Status']}")


def what_failed(output: str) -> str:
    """Return the errors in Airflow's output, or its end if there are none."""
    lines = output.rstrip().splitlines()
    errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)]
    return "\n".join(dict.fromkeys(errors) or lines[-30:])


def interrupt(*_: object) -> None:
    """End after every clean-up; a second Ctrl-C does not interrupt it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # Not SIG_IGN: Python prints an error if a signal arrives while it is set.
        signal.signal(number, lambda *_: None)
    raise KeyboardInterrupt


def main() -> int:
    """Run the demo and leave nothing behind."""
    start = time.monotonic()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    # A ticket's subject may have characters that a plain terminal can't print.
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    keep, options = "--keep" in sys.argv, [option for option in sys.argv[1:] if option != "--keep"]
    try:
        with tempfile.TemporaryDirectory(prefix="onebox-demo-") as folder, sandbox(options) as url:
            demo(Path(folder), url, keep=keep)
    except (AirflowHomeError, subprocess.TimeoutExpired, OSError, KeyError, ValueError) as problem:
        print(f"{type(problem).__name__}: {problem}\nThe demo failed.", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        # A process that was just being started has no owner yet.
        for child in psutil.Process().children(recursive=True):
            child.kill()
        print("Interrupted; nothing is left.", file=sys.stderr)  # noqa: T201
        return 130
    say("Took", f"{time.monotonic() - start:.0f} s; nothing is left behind")
    return 0


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
