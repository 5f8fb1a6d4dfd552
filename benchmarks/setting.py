"""Where measurements happen: a Onebox in a separate process, and an Airflow that reads no file of the user's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")
ROOT = Path(__file__).parent.parent
EMAIL = "care@example.com"
PASSWORD = "benchmark-password"  # noqa: S105 - of the local sandbox


def in_turns(rounds: int, contenders: dict[str, Callable[[], T]]) -> dict[str, list[T]]:
    """Run contenders in turns, each round beginning with another one.

    :param rounds: how often each runs.
    :param contenders: functions by name.
    :return: by the same name, what they returned.
    """
    got: dict[str, list[T]] = {name: [] for name in contenders}
    names = list(contenders)
    for n in range(rounds):
        for name in names[n % len(names) :] + names[: n % len(names)]:
            got[name].append(contenders[name]())
    return got


class Onebox:
    """A running sandbox.

    :param url: its address.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def control(self, call: str, **arguments: Any) -> Any:
        """Call a method of its state.

        :param call: the method.
        :param arguments: that method's arguments.
        :return: what the method returns.
        """
        request = urllib.request.Request(f"{self.url}/sandbox/{call}", json.dumps(arguments).encode())
        with self._open(request) as response:
            return json.load(response)

    def token(self) -> str:
        """Log in.

        :return: a token.
        """
        form = {"email": EMAIL, "password": PASSWORD, "siteId": "169"}
        with self._open(f"{self.url}/api/authenticate", urllib.parse.urlencode(form).encode()) as response:
            return str(json.load(response)["token"])


@contextmanager
def onebox(records: int, *options: str) -> Iterator[Onebox]:
    """Run a sandbox whose tickets are all made before anything is measured.

    :param records: rows of each resource.
    :param options: more of the sandbox's command line.
    :return: the sandbox.
    """
    command = [sys.executable, "-m", "airflow_provider_onebox.sandbox", "--records", str(records)]
    command += ["--email", EMAIL, "--password", PASSWORD, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None  # noqa: S101 - it is a pipe
            sandbox = Onebox(process.stdout.readline().strip())
            sandbox.control("warm", count=records)
            yield sandbox
        finally:
            process.terminate()


@contextmanager
def airflow_home() -> Iterator[dict[str, str]]:
    """Make an empty home for Airflow.

    :return: the environment for processes that use it.
    """
    with tempfile.TemporaryDirectory(prefix="onebox-bench-") as home:
        # Without bytecode files every import would compile, which no installation does.
        other = ("AIRFLOW_", "PYTHONDONTWRITEBYTECODE")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(other)}
        yield {
            **kept,
            "AIRFLOW_HOME": home,
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "CRITICAL",
            "NO_PROXY": "127.0.0.1",
        }


class Bench:
    """Runs measurements, each in a separate interpreter.

    :param env: the environment for them, from :func:`airflow_home`.
    :param quick: whether to measure little, and once, to see that it works.
    """

    def __init__(self, env: dict[str, str], quick: bool) -> None:
        self.env = env
        self.quick = quick

    def of(self, many: int, few: int = 1) -> int:
        """Choose a number of rows or repetitions.

        :param many: for a full run.
        :param few: for a quick one.
        :return: the one that applies.
        """
        return few if self.quick else many

    def child(self, name: str, sandbox: Onebox | None = None, **arguments: Any) -> Any:
        """Run one function of :mod:`benchmarks.child` in a new interpreter.

        :param name: the function.
        :param sandbox: what the connections ``onebox_default`` and ``http_bench``, and :mod:`benchmarks.contenders`,
            lead to.
        :param arguments: the function's arguments.
        :return: what it returns, as JSON has it.
        """
        env = self.env | (described(sandbox) if sandbox else {})
        command = [sys.executable, "-m", "benchmarks.child", name, json.dumps(arguments)]
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        return json.loads(done.stdout.splitlines()[-1])


def described(sandbox: Onebox) -> dict[str, str]:
    """Describe a sandbox to a process: connections for Airflow, and what :mod:`benchmarks.contenders` reads.

    :param sandbox: where they lead.
    :return: environment variables.
    """
    return {
        "AIRFLOW_CONN_ONEBOX_DEFAULT": describe(sandbox.url, "169"),
        "AIRFLOW_CONN_HTTP_BENCH": json.dumps({"conn_type": "http", "host": sandbox.url}),
        "BENCH_URL": sandbox.url,
        "BENCH_TOKEN": sandbox.token(),
    }


def describe(url: str, site_id: str) -> str:
    """Describe a connection to a sandbox as an environment variable does.

    :param url: where it leads.
    :param site_id: the site.
    :return: JSON.
    """
    extra = {"site_id": site_id}
    return json.dumps({"conn_type": "onebox", "host": url, "login": EMAIL, "password": PASSWORD, "extra": extra})
