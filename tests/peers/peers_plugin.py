"""For pytest, in the suites of others: puts what is ours in the place of theirs, and notes what became of each test.

``PEERS_OURS`` names whose place is taken, ``PEERS_REPORT`` the file for the outcomes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import requests
import urllib3.connection
import urllib3.connectionpool

from airflow_provider_onebox.api.auth import OneboxSession
from airflow_provider_onebox.api.settings import Settings

SETTINGS = Settings("peers", "https://onebox.example", "agent@example.com", "open sesame", "169")

outcomes: dict[str, str] = {}


class PeerSession(OneboxSession):
    """Our session, made without arguments, as theirs is."""

    def __init__(self) -> None:
        super().__init__(SETTINGS)


def take_place_of_requests() -> None:
    """Let the suite of requests meet our session wherever it makes one."""
    requests.Session = requests.sessions.Session = PeerSession


def take_place_of_urllib3() -> None:
    """Let the suite of urllib3 meet the connections, and so the responses, that our session makes."""
    adapter = PeerSession().get_adapter("https://")
    for scheme, name in (("http", "HTTPConnection"), ("https", "HTTPSConnection")):
        request = requests.Request("GET", f"{scheme}://localhost/").prepare()
        ours = adapter.get_connection_with_tls_context(request, verify=True).ConnectionCls
        pool = getattr(urllib3.connectionpool, f"{name}Pool")
        if not issubclass(ours, pool.ConnectionCls) or ours is pool.ConnectionCls:
            raise AssertionError(f"{ours} would be tried against itself")
        # The suite puts back what it finds in the modules, and compares classes with it.
        pool.ConnectionCls = ours
        for module in (urllib3.connection, urllib3.connectionpool):
            setattr(module, name, ours)
    urllib3.connection.VerifiedHTTPSConnection = urllib3.connection.HTTPSConnection


def pytest_configure(config):
    {"requests": take_place_of_requests, "urllib3": take_place_of_urllib3, "": int}[os.environ["PEERS_OURS"]]()


def pytest_runtest_logreport(report):
    # A test has passed if none of its three steps went otherwise.
    if (report.when == "setup" or report.outcome != "passed") and outcomes.get(report.nodeid) != "failed":
        outcomes[report.nodeid] = report.outcome


def pytest_sessionfinish():
    Path(os.environ["PEERS_REPORT"]).write_text(json.dumps(outcomes))
