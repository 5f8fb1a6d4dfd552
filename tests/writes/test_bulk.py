"""Many writes at once: each row has a result that is true, and no row is written twice."""

from __future__ import annotations

import multiprocessing
import threading
import warnings

import pytest
from support.bulk import CONTACTS, written

from airflow_provider_onebox.exceptions import OneboxAuthError, OneboxError, OneboxRequestError, OneboxUnavailableError
from airflow_provider_onebox.hooks.onebox import OneboxHook


def test_rejected(connected, bulk, tmp_path, caplog, capsys):
    """Rows that Onebox or this provider rejects have their reason and harm no others; a clear tries them again."""
    rows = [CONTACTS[0], {"name": "x"}, {}, {"nam": "x"}, "x", CONTACTS[1]]
    connected.state.fail("envelope", path="contactrz", after=1, status=422, message="the fields are not valid.")
    with pytest.raises(OneboxRequestError) as caught:
        bulk.run(rows, parallelism=1)
    assert not caught.value.uncertain
    summary = (
        f"{tmp_path}/results.jsonl: of 6 rows, 2 are done, 4 rejected, 0 uncertain. Row 1 is rejected: the fields are "
        "not valid"
    )
    assert str(caught.value) == (
        f"{summary}. The file has the reason for each. When you clear the task, only those rows are sent again."
    )
    assert f"{summary}." in caplog.text + capsys.readouterr().out
    lines = bulk.results()
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
    # The server accepts it now.
    connected.state.fail("wrong_type", path="contactrz", value={"Id": "77"})
    assert bulk.run(rows, max_failed_share=0.5)["rejected"] == 3
    assert bulk.results()[1]["id"] == "77"


def test_rows_beyond_json(connected, bulk):
    """A row that is no JSON, such as one cut within an emoji, harms no others and is recognized again."""
    rows = [CONTACTS[0], {"name": "\ud83d"}, {1: 2}, CONTACTS[1]]
    assert bulk.run(rows, max_failed_share=1)["count"] == 4
    first = bulk.results()
    assert [line["result"] for line in first] == ["done", "done", "rejected", "done"]
    assert bulk.run(rows, max_failed_share=1)["done"] == 3
    assert bulk.results() == first


def test_stops(connected, connect, bulk):
    """What is no row's fault ends the task with its own error; the rows are not sent, and a retry goes on with them."""
    connect(connected.url, login=connected.email, password=connected.password, max_retries=0)
    connected.state.fail("status", path="contactrz", status=429, after=3, times=99)
    with pytest.raises(OneboxUnavailableError):
        bulk.run(parallelism=2)
    lines = bulk.results()
    assert {line["result"] for line in lines} == {"begun", "done", "not_sent"}
    assert connected.state.requests["POST list"] <= 3 + 2
    connected.state.calm()
    assert bulk.run([])["count"] == 0
    assert {line["result"] for line in bulk.results()} == {"done"}
    assert bulk.run()["done"] == 9
    assert written(connected) == [row["name"] for row in CONTACTS]


def test_rejected_login(connected, connect, bulk):
    """A rejected password is tried once, whatever the number of rows."""
    connect(connected.url, login=connected.email, password="wrong password")
    with pytest.raises(OneboxAuthError):
        bulk.run(parallelism=4)
    assert connected.state.failed_logins == 1
    assert not connected.state.books()
    assert "done" not in {line["result"] for line in bulk.results()}


@pytest.mark.parametrize("status", [400, 500])
def test_no_secrets(connected, bulk, tmp_path, status):
    """What the server repeats of the password or a token is in no result and no error."""
    secrets = [connected.password, OneboxHook().get_token()]
    connected.state.fail("envelope", path="contactrz", status=status, message=" ".join(["bad:", *secrets]), times=9)
    with pytest.raises(OneboxError) as caught:
        bulk.run()
    text = (tmp_path / "results.jsonl").read_text() + str(caught.value)
    assert text.count("bad: *** ***") == 10
    assert not [secret for secret in secrets if secret in text]


def test_stops_while_another_row_takes_long(connected, bulk, monkeypatch):
    """No further row is sent after what stops the whole, even while a row before it has no response yet."""
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
        bulk.run(parallelism=2)
    assert sorted(sent) == ["Contact 0", "Contact 1"]


def test_unforeseen_error(connected, bulk, monkeypatch):
    """An error of another kind stops the task, and its row is uncertain."""

    def create_contact(self, *, name):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(OneboxHook, "create_contact", create_contact)
        with pytest.raises(MemoryError):
            bulk.run(parallelism=1)
    assert [line["result"] for line in bulk.results()] == ["begun"]
    assert bulk.run(max_failed_share=1)["uncertain"] == 1
    assert bulk.results()[0]["message"] == (
        "A try of this task ended after it began to send and before it noted a result: check in Onebox."
    )


def test_killed(connected, bulk):
    """A process that is killed in the midst of its writes leaves no row that is written twice or forgotten."""
    rows = [{"name": f"Contact {n}"} for n in range(40)]
    connected.state.fail("hang", path="POST /api/contactrz", after=13, times=99)
    process = multiprocessing.get_context("fork").Process(target=bulk.run, args=(rows,), daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # this process has threads
        process.start()
    while len(connected.state.books()) < 17:
        assert process.is_alive()
        threading.Event().wait(0.005)
    process.kill()
    process.join()
    connected.state.calm()
    result = bulk.run(rows, max_failed_share=1)
    assert result["done"] + result["uncertain"] == 40
    assert 0 < result["uncertain"] <= 4
    names = written(connected)
    assert len(names) == len(set(names))
    done = {rows[line["row"]]["name"] for line in bulk.results() if line["result"] == "done"}
    assert done <= set(names) <= {row["name"] for row in rows}
