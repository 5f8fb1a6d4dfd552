"""Fixtures for the whole suite."""

from __future__ import annotations

import json
import time

import jwt
import pytest

from airflow_provider_onebox.sandbox import Sandbox


@pytest.fixture
def sandbox():
    """A local Onebox with 250 rows a resource at sites 169 and 170."""
    with Sandbox(records=250) as running:
        yield running


@pytest.fixture
def connect(monkeypatch):
    """Define a connection through the environment, as deployments do."""

    def define(host, conn_id="onebox_default", *, login="agent@example.com", password="open sesame", **extra):
        fields = {"conn_type": "onebox", "host": host, "login": login, "password": password}
        fields["extra"] = {"site_id": "169", **extra}
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(fields))

    return define


@pytest.fixture
def connected(sandbox, connect):
    """The sandbox, with `onebox_default` pointing at it."""
    connect(sandbox.url, login=sandbox.email, password=sandbox.password)
    return sandbox


@pytest.fixture
def make_token():
    """Make a token as Onebox issues them."""

    def make(*, age=0, life=900, **claims):
        issued = int(time.time()) - age
        return jwt.encode({"sub": "55", "sid": "169", "iat": issued, "exp": issued + life, **claims}, "k" * 32)

    return make
