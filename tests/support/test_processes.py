"""A command ends with the test that starts it, and so does what it has started."""

from __future__ import annotations

import sys
from contextlib import suppress

import psutil

from support.processes import PATIENCE, run, started

PARENT = """
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"]).pid, flush=True)
time.sleep(3600)
"""


def test_a_test_that_fails():
    """A failing test leaves neither a command nor its child behind."""
    with suppress(ZeroDivisionError), started(sys.executable, "-c", PARENT) as process:
        child = psutil.Process(int(process.stdout.readline()))
        raise ZeroDivisionError
    assert process.returncode == -9
    assert psutil.wait_procs([child], PATIENCE)[1] == []


def test_run():
    """Output, errors and the exit code of a command are kept apart; it reads nothing."""
    code = "import sys; print(sys.stdin.read() + 'out'); sys.exit('error')"
    done = run(sys.executable, "-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (1, "out\n", "error\n")
