"""The sandbox starts, says where it is, and stops."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import signal
import socket
import sys
import time

import pytest
import requests
from support.processes import PATIENCE, run, started

from airflow_provider_onebox.sandbox import Sandbox
from airflow_provider_onebox.sandbox.__main__ import main
from airflow_provider_onebox.sandbox.app import CALLS, App

COMMAND = [sys.executable, "-W", "error", "-m", "airflow_provider_onebox.sandbox"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_command_line(number):
    """It says where it is and how to log in, responds at once, and a signal ends it without a word."""
    options = "--records 1000000 --sites 7 --email a@b.c --token-life 5 --latency 1 --base-path /feature/voc --seed 3"
    options = [*options.split(), "--set", "page_cap=2", "--password", "p w", "--until", "2026-11-24 08:30"]
    with started(*COMMAND, *options) as process:
        assert process.stdout is not None
        url, email, password, sites, connection = (process.stdout.readline().rstrip("\n") for _ in range(5))
        assert url.startswith("http://127.0.0.1:")
        assert url.endswith("/feature/voc")
        form = {"email": "a@b.c", "password": "p w", "siteId": "7"}
        with requests.Session() as session:
            token = session.post(f"{url}/api/authenticate", data=form, timeout=PATIENCE).json()["token"]
            headers = {"Authorization": f"Bearer {token}"}
            page = session.get(f"{url}/api/ticketrz", headers=headers, timeout=PATIENCE).json()
            query = {"since": "2026-11-24 08:29"}
            last = session.get(f"{url}/api/ticketrz", params=query, headers=headers, timeout=PATIENCE).json()
        assert (page["count"], page["total"]) == (2, 1_000_000)
        assert last["data"][-1]["CreateDate"] == "2026-11-24 08:30:00"
        process.send_signal(number)
        out, errors = process.communicate(timeout=PATIENCE)
        assert (process.returncode, out, errors) == (0, "", "")
    assert (email, password, sites) == ("E-mail: a@b.c", "Password: p w", "Sites: 7")
    # A shell reads the line back as one word.
    (word,) = shlex.split(connection)
    assert word.startswith("AIRFLOW_CONN_ONEBOX_DEFAULT=")
    values = {"conn_type": "onebox", "host": url, "login": "a@b.c", "password": "p w", "extra": {"site_id": 7}}
    assert json.loads(word.partition("=")[2]) == values


@pytest.mark.parametrize("missing", ["starlette.applications", "uvicorn"])
def test_without_its_extra(missing):
    """Without its libraries the sandbox says how to install them."""
    code = f"import sys; sys.modules['{missing}'] = None; import airflow_provider_onebox.sandbox"
    done = run(sys.executable, "-c", code)
    assert done.returncode == 1
    assert done.stderr.endswith("the sandbox needs: pip install 'airflow-provider-onebox[sandbox]'\n")


@pytest.fixture
def run_main(monkeypatch, capsys):
    """Run the command line within this process; returns its exit code, output and errors."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def call(*options):
        try:
            code = main(options)
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return call


def test_help(run_main):
    """The help names each call that can be posted, with its arguments."""
    _, shown, _ = run_main("--help")
    for call in CALLS:
        assert f"  {call}(" in shown
    assert "fail(kind, path='*', times=1, after=0, **options)\n      Queue a fault." in shown


@pytest.mark.parametrize(
    "option", [["--set", "nosuch=1"], ["--set", "latency"], ["--fault-kinds", "nosuch"], ["--until", "x"]]
)
def test_command_line_refuses(run_main, option):
    """A setting that does not exist is a usage error, without a traceback."""
    code, out, errors = run_main(*option)
    assert (code, out) == (2, "")
    assert "error:" in errors


def test_stopping_ends_idle_connections():
    """A client's connection that is kept alive does not outlive the sandbox."""
    with requests.Session() as session:
        with Sandbox(records=1) as sandbox:
            assert session.get(f"{sandbox.url}/api/ticketrz", timeout=PATIENCE).status_code == 401
            assert sandbox.state.transports
        assert not sandbox.state.transports
        with pytest.raises(requests.exceptions.ConnectionError):
            session.get(f"{sandbox.url}/api/ticketrz", timeout=PATIENCE)


def test_port_in_use(run_main):
    """A port that is taken is an error of the caller's, and nothing is left open."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            Sandbox(port=port).start()
        problem = f"The sandbox can't listen on 127.0.0.1, port {port}: Address already in use.\n"
        assert run_main("--port", str(port)) == (1, "", problem)


@pytest.mark.parametrize("option", [["--host", "192.0.2.1"], ["--host", "no.such.invalid"], ["--port", "70000"]])
def test_address_that_cannot_be(run_main, option):
    """An address that this machine does not have is one line, too."""
    code, out, errors = run_main(*option)
    assert (code, out) == (1, "")
    assert re.fullmatch(r"The sandbox can't listen on [\w.]+, port \d+: .+\.\n", errors)


def test_stop_waits_for_no_request():
    """A sandbox that is stopped in the middle of a request does not wait for its end."""
    with Sandbox(records=10) as sandbox:
        sandbox.state.fail("hang")
        with pytest.raises(requests.exceptions.ReadTimeout):
            requests.get(f"{sandbox.url}/api/ticketrz", timeout=0.05)
        sandbox.state.configure(latency=1000)
        with pytest.raises(requests.exceptions.ReadTimeout):
            requests.get(f"{sandbox.url}/api/ticketrz", timeout=0.05)
        start = time.monotonic()
    assert time.monotonic() - start < PATIENCE
    with pytest.raises(requests.exceptions.ConnectionError):
        requests.get(sandbox.url, timeout=1)


def test_nothing_else_is_imported():
    """The sandbox is alone: neither Airflow nor the rest of the package is loaded with it."""
    code = (
        "import sys, airflow_provider_onebox.sandbox.__main__\n"
        "print([name for name in sys.modules if name.partition('.')[0] in ('airflow', 'requests')"
        " or name.startswith('airflow_provider_onebox.') and '.sandbox' not in name])"
    )
    done = run(sys.executable, "-c", code)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("client", "status"), [(("127.0.0.1", 1), 200), (("10.0.0.1", 1), 404), (None, 404)])
def test_control_is_for_loopback(client, status):
    """Whatever address is bound, only this machine can change the sandbox."""
    scope = {"type": "http", "method": "POST", "path": "/sandbox/calm", "query_string": b"", "headers": []}
    sent = []

    async def receive():
        return {"type": "http.request", "body": b""}

    async def send(message):
        sent.append(message)

    asyncio.run(App(Sandbox().state)({**scope, "client": client}, receive, send))
    assert sent[0]["status"] == status
