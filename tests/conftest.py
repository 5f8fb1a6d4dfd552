"""Fixtures, and an Airflow in the tests' own process that reads no file of the user's and writes none.

Nothing here imports Airflow before a test needs it: that takes three seconds, and tests of ``api`` do without.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import coverage
import jwt
import pytest

# Airflow reads its configuration when it is first imported: it is set before that.
for _name in [name for name in os.environ if name.startswith("AIRFLOW_")]:
    del os.environ[_name]
_home = tempfile.TemporaryDirectory(prefix="airflow-unit-", ignore_cleanup_errors=True)
os.environ |= {
    "AIRFLOW_HOME": _home.name,
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{_home.name}/airflow.db",
    "AIRFLOW__LOGGING__COLORED_CONSOLE_LOG": "False",
}
if version("apache-airflow").startswith("2."):
    os.environ["AIRFLOW__METRICS__TIMER_UNIT_CONSISTENCY"] = "True"

pytest_plugins = ["airflow_provider_onebox.sandbox.pytest"]
pytest.register_assert_rewrite("support.compliance")

if TYPE_CHECKING:
    from collections.abc import Iterator

_NEEDS_AIRFLOW = re.compile(
    r"^ *(?:from|import) (?:airflow\b|support\.(?!compliance|processes|wire)"
    r"|airflow_provider_onebox(?!\.(?:api|exceptions|provider_info|sandbox)\b))",
    re.MULTILINE,
)


def _needs_airflow(argument: str) -> bool:
    """Return whether a file of tests, or one in a folder of them, imports Airflow, by itself or through the package."""
    path = Path(argument.partition("::")[0])
    files = [path] if path.is_file() else path.rglob("test_*.py")
    return any(_NEEDS_AIRFLOW.search(file.read_text(encoding="utf-8")) for file in files)


def pytest_configure(config: pytest.Config) -> None:
    """Let files of tests that need nothing of Airflow but the base of the errors run without it."""
    if "airflow" in sys.modules or any(map(_needs_airflow, config.args)):
        return
    sdk: Any = ModuleType("airflow.providers.common.compat.sdk")
    sdk.AirflowException = type("AirflowException", (Exception,), {})
    sdk.AirflowFailException = type("AirflowFailException", (sdk.AirflowException,), {})
    sys.modules[sdk.__name__] = sdk


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes long, so that of two workers none is left alone with it at the end."""
    items.sort(key=lambda item: item.get_closest_marker("processes") is None)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Note in the coverage data which test runs which line, for `make mutants`."""
    measuring = coverage.Coverage.current()
    if measuring:
        measuring.switch_context(item.nodeid)
    yield


@pytest.fixture
def sandbox(onebox_sandbox):
    """A local Onebox with 250 records a resource at sites 169 and 170, as users' tests get it."""
    return onebox_sandbox


@pytest.fixture
def connect(monkeypatch):
    """Define a connection through the environment, as deployments do."""

    def define(host, conn_id="onebox_default", *, login="agent@example.com", password="open sesame", **extra):
        fields = {"conn_type": "onebox", "host": host, "login": login, "password": password}
        fields["extra"] = {"site_id": "169", **extra}
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(fields))

    return define


@pytest.fixture
def connected(onebox_connection, sandbox):
    """The sandbox, with `onebox_default` pointing at it."""
    return sandbox


@pytest.fixture
def reconnect(connect, sandbox):
    """Define `onebox_default`, or another connection to the sandbox, with other options."""

    def define(conn_id="onebox_default", **options):
        connect(sandbox.url, conn_id, **{"login": sandbox.email, "password": sandbox.password, **options})

    return define


@pytest.fixture
def bulk(tmp_path):
    """Bulk writes whose results file is in a test's folder."""
    from support.bulk import Bulk

    return Bulk(tmp_path)


@pytest.fixture
def make_token():
    """Make a token as Onebox issues them."""

    def make(*, age=0, life=900, **claims):
        issued = int(time.time()) - age
        return jwt.encode({"sub": "55", "sid": "169", "iat": issued, "exp": issued + life, **claims}, "k" * 32)

    return make


@pytest.fixture
def on_another_airflow(monkeypatch):
    """Run a module of the package anew as another Airflow would: with some names and modules missing."""

    def run(module, *, without=(), instead=()):
        for name in without:
            place, _, attribute = name.rpartition(":")
            if place:
                monkeypatch.delattr(importlib.import_module(place), attribute, raising=False)
            else:
                monkeypatch.setitem(sys.modules, name, None)
        for name, content in dict(instead).items():
            stand_in = ModuleType(name)
            vars(stand_in).update(content)
            monkeypatch.setitem(sys.modules, name, stand_in)
        spec = importlib.util.spec_from_file_location(f"{module.__name__}_again", module.__file__)
        copy = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(copy)
        return copy

    return run
