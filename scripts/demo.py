"""Run ``example_onebox_token`` in a real Airflow against a local Onebox, and tell what came of it.

Arguments go to the sandbox: ``--records 5``, or ``--set outside_service_hours=true`` to see a failure.
"""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.airflow_home import AirflowHome, AirflowHomeError  # noqa: E402 - stands beside the tests, not in the package

if TYPE_CHECKING:
    from collections.abc import Iterator

DAG = "example_onebox_token"
EMAIL, PASSWORD, SITE = "demo@example.com", "demo p&ss=w%rd", "169"


def say(name: str, words: object) -> None:
    """Print a line of the account."""
    print(f"{name:<13}{words}", flush=True)  # noqa: T201


@contextmanager
def sandbox(options: list[str]) -> Iterator[str]:
    """Run the sandbox as a process of its own and give its address."""
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
    """Ask the sandbox what it has seen."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{url}/sandbox/snapshot", timeout=10) as reply:
        seen: dict[str, Any] = json.load(reply)
    return seen


def demo(folder: Path, url: str) -> None:
    """Run the DAG and print the account.

    :raises AirflowHomeError: if anything is not as it should be; the message holds the end of Airflow's output.
    """
    say("Airflow", f"{version('apache-airflow')} on Python {platform.python_version()}, in a folder of its own")
    say("Onebox", f"a sandbox at {url}")
    connection = {"conn_type": "onebox", "host": url, "login": EMAIL, "password": PASSWORD}
    connection["extra"] = json.dumps({"site_id": SITE})
    dags = [ROOT / "example_dags" / f"{DAG}.py"]
    with AirflowHome(folder, dags, connections={"onebox_default": json.dumps(connection)}) as home:
        home.migrate()
        run = home.test_dag(DAG)
    states = ", ".join(f"{task} {state}" for (task, _), state in sorted(run.tasks.items()))
    say("DAG", f"{DAG}: {run.state} ({states})")
    if run.state != "success":
        raise AirflowHomeError(f"{DAG} ended as {run.state}:\n{what_failed(run.output)}")

    seen = counters(url)
    token = run.xcoms["authenticate", -1, "return_value"]
    tickets = run.xcoms["list_tickets", -1, "return_value"]
    expected = {"POST authenticate": 1, "GET list": 1}
    if seen["requests"] != expected:
        raise AirflowHomeError(f"Onebox was asked for {seen['requests']}, not for {expected}.")
    if token in run.output:
        raise AirflowHomeError("The token stands in Airflow's log.")
    (user,), (site,) = seen["logins_by_user"], seen["logins_by_site"]
    kind = "a JWT" if token.count(".") == 2 else "an opaque token"
    say("Logged in", f"once, as {user} for site {site}")
    say("Token", f"published to XCom: {kind} of {len(token)} characters; ***** in the log")
    say("Expires", run.xcoms["authenticate", -1, "expires_at"] or "at a time that it does not tell")
    say("Tickets", f"{len(tickets)}, listed downstream with that token")
    for ticket in tickets:
        say("", f"{ticket['Id']:<8}{ticket['Subject']:<34}{ticket['Status']}")


def what_failed(output: str) -> str:
    """Return the errors in what Airflow said, or the end of it if there are none."""
    lines = output.rstrip().splitlines()
    errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)]
    return "\n".join(dict.fromkeys(errors) or lines[-30:])


def interrupt(*_: object) -> None:
    """End through every clean-up on the way, which a second Ctrl-C does not break off."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # Not SIG_IGN: Python complains of a signal that was on its way when it began to be ignored.
        signal.signal(number, lambda *_: None)
    raise KeyboardInterrupt


def main() -> int:
    """Run the demo and leave nothing behind."""
    start = time.monotonic()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    # A ticket's subject may hold what a plain terminal has no sign for.
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        with tempfile.TemporaryDirectory(prefix="onebox-demo-") as folder, sandbox(sys.argv[1:]) as url:
            demo(Path(folder), url)
    except (AirflowHomeError, subprocess.TimeoutExpired, OSError, KeyError, ValueError) as problem:
        print(f"{type(problem).__name__}: {problem}\nThe demo failed.", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        # A process that was just being started when the signal came belongs to nobody yet.
        for child in psutil.Process().children(recursive=True):
            child.kill()
        print("Interrupted; nothing is left.", file=sys.stderr)  # noqa: T201
        return 130
    say("Took", f"{time.monotonic() - start:.0f} s; nothing is left behind")
    return 0


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
