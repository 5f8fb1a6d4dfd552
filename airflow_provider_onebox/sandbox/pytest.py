"""Fixtures for tests of your own DAGs, for use as ``pytest_plugins = ["airflow_provider_onebox.sandbox.pytest"]``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from .server import Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def onebox_sandbox() -> Iterator[Sandbox]:
    """Run a local Onebox with 250 records in each resource, for the length of a test."""
    with Sandbox(records=250) as sandbox:
        yield sandbox


@pytest.fixture
def onebox_connection(onebox_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> str:
    """Point the connection ``onebox_default`` at ``onebox_sandbox``, and return its id."""
    connection = {
        "conn_type": "onebox",
        "host": onebox_sandbox.url,
        "login": onebox_sandbox.email,
        "password": onebox_sandbox.password,
        "extra": {"site_id": int(onebox_sandbox.state.sites[0])},
    }
    monkeypatch.setenv("AIRFLOW_CONN_ONEBOX_DEFAULT", json.dumps(connection))
    return "onebox_default"
