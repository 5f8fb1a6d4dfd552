"""A browser, Onebox as a separate process, and what the run on Airflow 2.11 hands to the one on 3.3."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from cryptography.fernet import Fernet
from playwright.sync_api import Page, expect, sync_playwright
from support.airflow_home import AIRFLOW_3, AirflowHome, copy_database

from airflow_provider_onebox.sandbox.server import EMAIL, PASSWORD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

collect_ignore = ["test_airflow_2.py"] if AIRFLOW_3 else ["test_airflow_3.py", "test_demo.py"]

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WAIT = 60_000
"""Milliseconds until the page must show what is expected of it, on a busy machine."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that `make e2e` gives."""
    parser.addoption("--handover", type=Path, help="folder that Airflow 2.11 leaves its database in for 3.3")
    parser.addoption("--screenshots", type=Path, help="folder for the pictures of the README")


@pytest.fixture(scope="session")
def handover(request: pytest.FixtureRequest) -> Path:
    """Return the folder between the two runs."""
    folder = request.config.getoption("--handover")
    if folder is None:
        pytest.fail("Run `make e2e`: it gives --handover and keeps the order.")
    return folder.resolve()


class Onebox(NamedTuple):
    """A sandbox that runs, and its account."""

    url: str
    email: str = EMAIL
    password: str = PASSWORD


@pytest.fixture(scope="session")
def onebox(handover: Path) -> Iterator[Onebox]:
    """Run Onebox in a separate process; on Airflow 3.3 at the address that 2.11 has stored."""
    port = Onebox(**_read(handover)["onebox"]).url.rsplit(":", 1)[1] if AIRFLOW_3 else "0"
    command = [sys.executable, "-m", "airflow_provider_onebox.sandbox", "--records=250", f"--port={port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Onebox(process.stdout.readline().strip())
        finally:
            process.terminate()


def _read(handover: Path) -> dict[str, Any]:
    file = handover / "handover.json"
    if not file.exists():
        pytest.fail(f"{file} is missing: the run on Airflow 2.11 comes first, as in `make e2e`.")
    return json.loads(file.read_text())


@pytest.fixture(scope="session")
def hand_over(handover: Path, onebox: Onebox) -> Callable[[AirflowHome], None]:
    """Leave a home's database, its key and the address of Onebox for Airflow 3.3."""

    def leave(home: AirflowHome) -> None:
        handover.mkdir(parents=True)
        copy_database(home.home / "airflow.db", handover / "airflow.db")
        state = {"fernet_key": home.config["core", "fernet_key"], "onebox": onebox._asdict()}
        (handover / "handover.json").write_text(json.dumps(state))

    return leave


@pytest.fixture(scope="session")
def upgraded(handover: Path) -> Callable[[Path], dict[tuple[str, str], str]]:
    """Put the database of Airflow 2.11 into a folder and return the settings that go with it."""

    def take(folder: Path) -> dict[tuple[str, str], str]:
        folder.mkdir()
        copy_database(handover / "airflow.db", folder / "airflow.db")
        return {("core", "fernet_key"): _read(handover)["fernet_key"]}

    return take


@contextmanager
def _browser() -> Iterator[Page]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.fail("There is no chromium: apt-get install chromium")
    expect.set_options(timeout=WAIT)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 1200, "height": 1440}, device_scale_factor=2)
        page.set_default_timeout(WAIT)
        try:
            yield page
        finally:
            browser.close()


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Page]:
    """Open a browser; after a failure its last sight is kept and named."""
    with _browser() as page:
        yield page
        if request.session.testsfailed:
            picture = tmp_path_factory.getbasetemp() / "failed.png"
            page.screenshot(path=picture)
            sys.stderr.write(f"\nThe page at the end: {picture}\n")


class Stored(NamedTuple):
    """A row of the connection table, deciphered."""

    host: str
    login: str
    password: str
    port: int | None
    extra: dict[str, Any]


@pytest.fixture(scope="session")
def stored() -> Callable[[AirflowHome, str], Stored]:
    """Read connections as they lie in the database."""

    def read(home: AirflowHome, conn_id: str) -> Stored:
        fernet = Fernet(home.config["core", "fernet_key"])
        query = "SELECT host, login, password, port, extra FROM connection WHERE conn_id = :id"
        [row] = home.database(query, id=conn_id)
        password, extra = (fernet.decrypt(row[name]).decode() for name in ("password", "extra"))
        return Stored(row["host"], row["login"], password, row["port"], json.loads(extra))

    return read
