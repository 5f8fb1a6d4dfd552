"""No secret leaves: a real deployment in separate processes, searched from end to end.

The package, requests and urllib3 log at level DEBUG (see the DAG's file); Airflow itself does not: at that level
the supervisor of Airflow 3 writes whole XComs to its console.
"""

from __future__ import annotations

import base64
import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from support.airflow_home import AIRFLOW_VERSION, free_port

from airflow_provider_onebox._airflow.encryption import PREFIX
from airflow_provider_onebox.sandbox import Sandbox

DAGS = Path(__file__).parent.parent / "dags"
PASSWORD = "s3cret & pa/ss+w:rd%21"
WRONG = "wr0ng & pa/ss+w:rd%22"
FAILING = {
    "fail_with_the_hook",
    "log_the_password",
    "wrong_password",
    "unreachable",
    "server_error",
    "slow",
    "wait_in_vain",
    "conversations_gone",
}


# Airflow 3.0 writes to its console what its parts tell each other: XComs, and the order to mask a secret.
CHATTER = re.compile(r"\[debug *\]" if AIRFLOW_VERSION == (3, 0) else "(?!)")


def forms(secret):
    """List the forms in which a secret could travel: as it is, url-encoded, as JSON text, base64 at any offset."""
    raw = secret.encode()
    # A secret within a longer text is cut differently; what does not depend on its neighbours is compared.
    inner = {base64.b64encode(b"\0" * pad + raw)[pad and 4 : -4].decode() for pad in range(3)}
    return {secret, quote(secret), quote(secret, safe=""), quote_plus(secret), json.dumps(secret)[1:-1], *inner}


@pytest.fixture
def deployment(airflow_home, tmp_path):
    """Run the DAG of all ways in a scheduler with LocalExecutor, API server and triggerer."""
    with Sandbox(records=50, password=PASSWORD) as sandbox:
        fields = {"conn_type": "onebox", "host": sandbox.url, "login": sandbox.email, "password": PASSWORD}
        fields["extra"] = {"site_id": "169", "timeout": 1, "max_retries": 1}
        gone = {**fields, "host": f"http://127.0.0.1:{free_port()}"}
        expired = sandbox.state.issue("169", sandbox.email, life=-100)
        # What a server that is broken, or hostile, could do: repeat what it was sent.
        words = f"you sent {PASSWORD} | {quote_plus(PASSWORD)} | {base64.b64encode(PASSWORD.encode()).decode()}"
        sandbox.state.fail("status", path="echo500", times=99, status=500, body=words)
        sandbox.state.fail("delay", path="slow", times=99, pause=3)
        first = sandbox.state.ids()[0]
        elsewhere = f"{sandbox.url.replace('127.0.0.1', 'localhost')}/public/{first}/0.txt"
        sandbox.state.fail("status", path=f"/files/{first}/", status=302, headers={"Location": elsewhere})
        home = airflow_home(
            [DAGS / "leaks.py"],
            connections={
                "onebox_default": json.dumps(fields),
                "onebox_wrong": json.dumps({**fields, "password": WRONG}),
                "onebox_gone": json.dumps(gone),
            },
            env={
                "AIRFLOW_VAR_EXPIRED": expired,
                "AIRFLOW_VAR_TICKETS": json.dumps(sandbox.state.ids()[:4]),
                "AIRFLOW_VAR_FOLDER": str(tmp_path / "files"),
            },
        )
        home.start("api-server", "scheduler", "dag-processor", "triggerer")
        run_id = home.trigger("leaks")
        home.until_state("leaks", run_id, "deferred", "wait")
        triggers = home.database("SELECT * FROM trigger")
        sandbox.state.add(1, "prospectrz")
        home.wait("leaks", run_id)
        assert home.stop() == []
        assert home.alive() == []
        yield home, run_id, sandbox, triggers, [path for path in (tmp_path / "files").rglob("*") if path.is_file()]


@pytest.mark.processes
def test_no_secret_leaves(deployment):
    """Logs, rendered fields, trigger rows, events and import errors hold no secret; one XCom does, in plain mode."""
    home, run_id, sandbox, triggers, files = deployment
    states = {task: state for (task, _), state in home.task_states("leaks", run_id).items()}
    assert {task for task, state in states.items() if state == "failed"} == FAILING, states
    assert {state for task, state in states.items() if task not in FAILING} == {"success"}, states
    assert home.import_errors() == {}
    xcoms = home.xcoms("leaks", run_id)
    token = xcoms["plain", -1, "return_value"]
    assert token in sandbox.state.tokens
    assert xcoms["encrypted", -1, "return_value"].startswith(PREFIX)
    assert len(sandbox.state.tokens) > 8
    # Another host rejects an attachment's request that carries a token.
    assert xcoms["conversations", -1, "return_value"]["attachments_failed"] == 0
    assert len(files) == xcoms["conversations", -1, "return_value"]["attachments"] + 2

    texts = {str(path): path.read_text(errors="replace") for path in home.log_files()}
    assert len(texts) > len(states)
    logged = "".join(texts.values())
    assert "user code logs ***" in logged
    assert "printed request" in logged
    assert "Bearer ***" in logged
    for error in ("OneboxAuthError", "OneboxUnavailableError", "OneboxUncertainWriteError"):
        assert re.search(rf"locals.*{error}:", logged, re.DOTALL)
    assert "/api/ticketrz?limit=2 HTTP/1.1" in logged
    # The supervisor of Airflow 3 copies task logs to the scheduler's console and does not mask that copy; what
    # user code itself says there is out of a provider's reach.
    texts = {
        place: "\n".join(line for line in text.splitlines() if "user code" not in line and not CHATTER.search(line))
        if "processes" in place
        else text
        for place, text in texts.items()
    }
    texts["trigger rows"] = str(triggers)
    texts |= {str(path): path.read_text() for path in files}
    # From Airflow 3.4 on, an XCom names its task by the id of the try.
    tries = home.database("SELECT * FROM task_instance WHERE task_id = 'plain'")
    owners = {"plain", *(row["id"] for row in tries if "id" in row)}
    with closing(sqlite3.connect(home.home / "airflow.db")) as database:
        for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            rows = database.execute(f'SELECT * FROM "{table}"').fetchall()  # noqa: S608 - names from the database
            if table in ("xcom", "xcom_v2"):
                rows = [row for row in rows if not ("return_value" in row and owners & set(map(str, row)))]
            texts[f"table {table}"] = "\n".join(
                " ".join(cell.decode(errors="replace") if isinstance(cell, bytes) else str(cell) for cell in row)
                for row in rows
            )
    secrets = {"password": PASSWORD, "wrong password": WRONG}
    secrets |= {f"token {n}": token for n, token in enumerate(sandbox.state.tokens)}
    leaks = [
        f"{name} in {place}: ...{text[max(0, text.index(form) - 80) : text.index(form)]}"
        for name, secret in secrets.items()
        for form in forms(secret)
        for place, text in texts.items()
        if form in text
    ]
    assert leaks == []
