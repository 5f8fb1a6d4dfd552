"""The demo ends well or says what went wrong; either way nothing of it is left."""

from __future__ import annotations

import re
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import requests
from support.processes import PATIENCE, started, unmeasured

DEMO = Path(__file__).parents[2] / "scripts" / "demo.py"


@contextmanager
def demo(folder, *options):
    """Run the demo with a folder for what is temporary, and see afterwards that nothing is left of it."""
    env = {**unmeasured(), "TMPDIR": str(folder), "PYTHONPATH": ""}
    with started(sys.executable, str(DEMO), *options, env=env) as process:
        yield process
    assert list(folder.iterdir()) == []


def test_failure(tmp_path):
    """A failing DAG is a failing demo, with the reason and without Airflow's chatter."""
    with demo(tmp_path, "--set", "service_hours_login=true", "--set", "outside_service_hours=true") as process:
        out, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "example_onebox_quick_start: failed" in out
    assert "Onebox serves this account only within certain hours" in errors
    assert errors.endswith("The demo failed.\n")
    assert len(errors.splitlines()) < 6


def test_success(tmp_path):
    """The report names who, where, what and how long, is short, and holds no token.

    With ``--keep``, Airflow and Onebox go on until Ctrl-C; the page wants the password that the report names.
    """
    with demo(tmp_path, "--keep", "--records", "3") as process:
        lines = []
        while not (lines and lines[-1].startswith("Page")):
            lines.append(process.stdout.readline())
            assert process.poll() is None
        url, password = re.search(r"(http://\S+), user admin, password (\S+)$", lines[-1]).groups()
        with requests.Session() as session:
            session.trust_env = False
            for given, status in ((password, 201), ("wrong", 401)):
                login = {"username": "admin", "password": given}
                assert session.post(f"{url}/auth/token", json=login, timeout=PATIENCE).status_code == status
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (0, "")
    out = "".join(lines) + rest
    assert len(out.splitlines()) <= 16
    for part in ("Airflow", "example_onebox_quick_start: success", "once, as demo@example.com for site 169"):
        assert part in out
    assert "3 tickets to /" in out
    assert len(re.findall(r"(?m)^ +1[0-9]{4} ", out)) == 3
    assert "eyJ" not in out
    assert out.splitlines()[-1].startswith("Took")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(tmp_path, number):
    """A signal ends the sandbox and Airflow too, at once."""
    with demo(tmp_path) as process:
        while not process.stdout.readline().startswith("Onebox"):
            assert process.poll() is None
        family = []
        while len(family) < 2:
            family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
        assert (process.returncode, errors) == (130, "Interrupted; nothing is left.\n")
        assert psutil.wait_procs(family, PATIENCE)[1] == []


def test_sandbox_that_does_not_start(tmp_path):
    """A mistake in the sandbox's options is reported."""
    with demo(tmp_path, "--no-such-option") as process:
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "unrecognized arguments: --no-such-option" in errors
    assert "The sandbox did not start." in errors
