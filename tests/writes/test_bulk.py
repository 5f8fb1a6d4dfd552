"""Many writes at once: each row has a result that is true, and no row is written twice."""

from __future__ import annotations

import json
import sys
import threading

import pytest
from support.bulk import CONTACTS, Bulk, written
from support.processes import started, unmeasured

from airflow_provider_onebox.exceptions import (
    OneboxAuthError,
    OneboxError,
    OneboxRequestError,
    OneboxUnavailableError,
)
from airflow_provider_onebox.hooks.onebox import OneboxHook


@pytest.fixture
def run(tmp_path):
    """Run an operator into a file of the test's own; return its result."""
    return Bulk(tmp_path).run


@pytest.fixture
def results(tmp_path):
    """Return what is in that file."""
    return Bulk(tmp_path).results


def test_rejected(connected, run, results, tmp_path, caplog, capsys):
    """Rows that Onebox or this provider rejects have their reason and harm no others; a clear tries them again."""
    rows = [CONTACTS[0], {"name": "x"}, {}, {"nam": "x"}, "x", CONTACTS[1]]
    connected.state.fail("envelope", path="contactrz", after=1, status=422, message="the fields are not valid.")
    with pytest.raises(OneboxRequestError) as caught:
        run(rows, parallelism=1)
    assert not caught.value.uncertain
    summary = (
        f"{tmp_path}/results.jsonl: of 6 rows, 2 are done, 4 rejected, 0 uncertain. Row 1 is rejected: the fields are "
        "not valid"
    )
    assert str(caught.value) == (
        f"{summary}. The file has the reason for each. When you clear the task, only those rows are sent again."
    )
    assert f"{summary}." in caplog.text + capsys.readouterr().out
    lines = results()
    assert [line["result"] for line in lines] == ["done", *["rejected"] * 4, "done"]
    assert [line.get("message", "")[:40] for line in lines[1:5]] == [
        "the fields are not valid.",
        "A contact needs a name, an e-mail addres",
        "The row is not a dictionary with the arg",
        "The row is not a dictionary with the arg",
    ]
    assert lines[3]["message"] == (
        "The row is not a dictionary with the arguments of the hook's create_contact (name, phone, fax, email, mobile, "
        "twitter_id, facebook_id, media): got an unexpected keyword argument 'nam'."
    )
    # The server has learned it.
    connected.state.fail("wrong_type", path="contactrz", value={"Id": "77"})
    assert run(rows, max_failed_share=0.5)["rejected"] == 3
    assert results()[1]["id"] == "77"


def test_rows_beyond_json(connected, run, results):
    """A row that is no JSON, such as one cut within an emoji, harms no others and is recognized again."""
    rows = [CONTACTS[0], {"name": "\ud83d"}, {1: 2}, CONTACTS[1]]
    assert run(rows, max_failed_share=1)["count"] == 4
    first = results()
    assert [line["result"] for line in first] == ["done", "done", "rejected", "done"]
    assert run(rows, max_failed_share=1)["done"] == 3
    assert results() == first


def test_stops(connected, connect, run, results):
    """What is no row's fault ends the task with its own error; the rows are not sent, and a retry goes on with them."""
    connect(connected.url, login=connected.email, password=connected.password, max_retries=0)
    connected.state.fail("status", path="contactrz", status=429, after=3, times=99)
    with pytest.raises(OneboxUnavailableError):
        run(parallelism=2)
    lines = results()
    assert {line["result"] for line in lines} == {"begun", "done", "not_sent"}
    assert connected.state.requests["POST list"] <= 3 + 2
    connected.state.calm()
    assert run([])["count"] == 0
    assert {line["result"] for line in results()} == {"done"}
    assert run()["done"] == 9
    assert written(connected) == [row["name"] for row in CONTACTS]


def test_rejected_login(connected, connect, run, results):
    """A rejected password is tried once, whatever the number of rows."""
    connect(connected.url, login=connected.email, password="wrong password")
    with pytest.raises(OneboxAuthError):
        run(parallelism=4)
    assert connected.state.failed_logins == 1
    assert not connected.state.books()
    assert "done" not in {line["result"] for line in results()}


@pytest.mark.parametrize("status", [400, 500])
def test_no_secrets(connected, run, tmp_path, status):
    """What the server repeats of the password or a token is in no result and no error."""
    secrets = [connected.password, OneboxHook().get_token()]
    connected.state.fail("envelope", path="contactrz", status=status, message=" ".join(["bad:", *secrets]), times=9)
    with pytest.raises(OneboxError) as caught:
        run()
    text = (tmp_path / "results.jsonl").read_text() + str(caught.value)
    assert text.count("bad: *** ***") == 10
    assert not [secret for secret in secrets if secret in text]


def test_stops_while_another_row_takes_long(connected, run, monkeypatch):
    """No further row is sent after what stops the whole, even while a row before it has no answer yet."""
    sent, further = [], threading.Event()

    def create_contact(self, *, name):
        sent.append(name)
        if name == "Contact 0":
            further.wait(0.5)
        elif name == "Contact 1":
            raise OneboxUnavailableError("down")
        else:
            further.set()
        return "1"

    monkeypatch.setattr(OneboxHook, "create_contact", create_contact)
    with pytest.raises(OneboxUnavailableError):
        run(parallelism=2)
    assert sorted(sent) == ["Contact 0", "Contact 1"]


def test_unforeseen_error(connected, run, monkeypatch, results):
    """An error of another kind stops the whole, and the row that met it is uncertain."""

    def create_contact(self, *, name):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(OneboxHook, "create_contact", create_contact)
        with pytest.raises(MemoryError):
            run(parallelism=1)
    assert [line["result"] for line in results()] == ["begun"]
    assert run(max_failed_share=1)["uncertain"] == 1
    assert results()[0]["message"] == (
        "A try of this task ended after it began to send and before it noted a result: check in Onebox."
    )


KILLED = """
import json, sys
from types import SimpleNamespace
from airflow_provider_onebox.operators.bulk import OneboxBulkWriteOperator
task = OneboxBulkWriteOperator(task_id="t", kind="contact", rows=json.loads(sys.argv[1]), results_path=sys.argv[2])
task.execute({"ti": SimpleNamespace(dag_id="d", task_id="t", run_id="r1", map_index=-1)})
"""


def test_killed(connected, run, tmp_path):
    """A process that is killed in the midst of its writes leaves no row that is written twice or forgotten."""
    rows = [{"name": f"Contact {n}"} for n in range(40)]
    connected.state.fail("hang", path="POST /api/contactrz", after=13, times=99)
    path = tmp_path / "results.jsonl"
    with started(sys.executable, "-c", KILLED, json.dumps(rows), str(path), env=unmeasured()) as process:
        while len(connected.state.books()) < 17:
            assert process.poll() is None
            threading.Event().wait(0.005)
    connected.state.calm()
    result = run(rows, max_failed_share=1)
    assert result["done"] + result["uncertain"] == 40
    assert 0 < result["uncertain"] <= 4
    names = written(connected)
    assert len(names) == len(set(names))
    done = {line["row"] for line in map(json.loads, path.read_text().splitlines()) if line["result"] == "done"}
    assert {rows[n]["name"] for n in done} <= set(names)
    assert set(names) <= {row["name"] for row in rows}
