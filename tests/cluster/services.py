"""Redis and PostgreSQL from Debian's packages: on loopback, in temporary folders, for a block."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.airflow_home import free_port
from support.processes import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def program(name: str, package: str) -> str:
    """Return the path of a program; that it is missing fails the test."""
    newest = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda p: float(p.parts[-3]))
    found = shutil.which(name) or next(map(str, reversed(newest)), None)
    if not found:
        pytest.fail(f"{name} is missing: apt-get install {package}")
    return found


def wait_for(answers: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a service responds."""
    deadline = time.monotonic() + PATIENCE
    while not answers():
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"{log.stem} does not respond:\n{log.read_text()}")
        time.sleep(0.1)


@contextmanager
def service(command: list[str], log: Path, answers: Callable[[], bool], **options: object) -> Iterator[None]:
    """Run a service for a block and end it by its process id."""
    with log.open("wb") as output:
        process = subprocess.Popen(  # type: ignore[call-overload]
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, **options
        )
    try:
        wait_for(answers, process, log)
        yield
    finally:
        # Fast shutdown to PostgreSQL, the ordinary end to Redis.
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def redis(logs: Path) -> Iterator[str]:
    """Run Redis, which keeps nothing, and give its URL."""
    server, client, port = program("redis-server", "redis-server"), program("redis-cli", "redis-tools"), free_port()
    ping = [client, "-h", "127.0.0.1", "-p", str(port), "ping"]

    def answers() -> bool:
        return subprocess.run(ping, capture_output=True, check=False).stdout.strip() == b"PONG"

    options = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no", "--dir", str(logs)]
    with service([server, *options], logs / "redis.log", answers):
        yield f"redis://127.0.0.1:{port}/0"


@contextmanager
def postgresql(logs: Path) -> Iterator[str]:
    """Run PostgreSQL with a new, empty database, and give its address: ``host:port/database``."""
    port = free_port()
    # It does not run as root, and its user can't enter a test's temporary folder: it gets another one.
    other = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
    initdb, server = program("initdb", "postgresql"), program("postgres", "postgresql")
    folder = Path(tempfile.mkdtemp(prefix="onebox-postgresql-"))
    try:
        if other:
            shutil.chown(folder, "postgres", "postgres")
        make = [initdb, "--pgdata", str(folder / "data"), "--username", "airflow", "--auth", "trust", "--no-sync"]
        subprocess.run([*make, "--encoding", "UTF8"], check=True, cwd=folder, capture_output=True, **other)  # type: ignore[call-overload]
        ready = [program("pg_isready", "postgresql-client"), "-h", "127.0.0.1", "-p", str(port)]

        def answers() -> bool:
            return subprocess.run(ready, capture_output=True, check=False).returncode == 0

        settings = [f"port={port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={folder}", "fsync=off"]
        settings += ["max_connections=200"]
        command = [server, "-D", str(folder / "data"), *(part for s in settings for part in ("-c", s))]
        with service(command, logs / "postgresql.log", answers, cwd=folder, **other):
            yield f"127.0.0.1:{port}/postgres"
    finally:
        shutil.rmtree(folder)
