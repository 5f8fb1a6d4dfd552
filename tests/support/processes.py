"""Processes that end with the test that starts them."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 600
"""Seconds that anything may take on a busy machine, for it is not what a test is about."""


def unmeasured() -> dict[str, str]:
    """Return the environment without coverage, for processes that import Airflow.

    It costs them a third of their time, and finds nothing that the tests within one process do not.
    """
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}


@contextmanager
def started(*command: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a command for a block; it ends with it, and so does all that it has started."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    with subprocess.Popen(command, text=True, start_new_session=True, **pipes) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def run(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return its output; after ``PATIENCE`` it is killed with all that it has started."""
    with started(*command, **options) as process:
        out, errors = process.communicate(timeout=PATIENCE)
    return subprocess.CompletedProcess(command, process.returncode, out, errors)
