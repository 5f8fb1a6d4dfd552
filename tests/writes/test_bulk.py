"""Many writes at once: each row has a result that is true, and no row is written twice."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from airflow.providers.common.compat.sdk import DAG
from support.bulk import CONTACTS, TICKET, Bulk, written
from support.polling import Log

from airflow_provider_onebox.exceptions import (
    OneboxAuthError,
    OneboxConfigError,
    OneboxError,
    OneboxRequestError,
    OneboxUnavailableError,
    OneboxUncertainWriteError,
)
from airflow_provider_onebox.files import uploads
from airflow_provider_onebox.hooks.onebox import OneboxHook
from airflow_provider_onebox.operators.bulk import OneboxBulkWriteOperator
from airflow_provider_onebox.writes import DONE
from airflow_provider_onebox.writes import results as results_file


@pytest.fixture
def run(tmp_path):
    """Run an operator into a file of the test's own; return its result."""
    return Bulk(tmp_path).run


@pytest.fixture
def results(tmp_path):
    """Return what is in that file."""
    return Bulk(tmp_path).results


def is_open(path):
    """Tell whether this process has a file open, or one that was replaced meanwhile."""
    numbers = os.listdir("/dev/fd")  # noqa: PTH208 - one of them is this listing's own
    return any(os.path.realpath(f"/dev/fd/{number}").startswith(str(path)) for number in numbers)


def test_arguments():
    """Plain arguments are checked when the DAG is read, and nothing is looked up."""
    options = {"task_id": "t", "rows": [], "results_path": "x"}
    with pytest.raises(ValueError, match="kind='case' is none of ticket, contact, message"):
        OneboxBulkWriteOperator(kind="case", **options)
    for share in (-0.1, 1.1):
        with pytest.raises(ValueError, match="is not a number from 0"):
            OneboxBulkWriteOperator(kind="ticket", max_failed_share=share, **options)


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        ("contact", CONTACTS),
        ("ticket", [{**TICKET, "subject": str(n)} for n in range(5)]),
        ("message", [{"connection_id": "1", "body": str(n)} for n in range(5)]),
    ],
)
def test_all_done(connected, run, results, tmp_path, monkeypatch, kind, rows):
    """Each row has a line with its id, in the order of the rows, and the task returns and logs the sum of them."""
    log = Log()
    monkeypatch.setattr(OneboxBulkWriteOperator, "log", log)
    count = len(rows)
    result = {"path": str(tmp_path / "results.jsonl"), "count": count, "done": count, "rejected": 0, "uncertain": 0}
    assert run(rows, kind, parallelism="3") == result
    words = f"{result['path']}: of {count} rows, {count} are done, 0 rejected, 0 uncertain."
    assert log.lines[-1] == ("info", words)
    lines = results()
    assert [(line["row"], line["result"]) for line in lines] == [(n, "done") for n in range(count)]
    assert {tuple(line) for line in lines} == {("row", "result", "key", "id")}
    assert sorted(line["id"] for line in lines) == sorted(entry["id"] for entry in connected.state.books())
    assert connected.state.logins == 1
    assert os.listdir(tmp_path) == ["results.jsonl"]  # noqa: PTH208 - names are what is compared


def test_rows_of_a_file(connected, run, tmp_path):
    """Rows come from a file, too."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in CONTACTS))
    assert run({"path": str(path)})["done"] == 9
    assert written(connected) == [row["name"] for row in CONTACTS]


def test_no_rows(connected, run, results):
    """No rows are no failure."""
    assert run([])["count"] == 0
    assert results() == []


def test_cleared(connected, run, results):
    """A cleared task writes nothing again, only what is new, also in another order; what is gone is kept apart."""
    run()
    assert run()["done"] == 9
    assert run([CONTACTS[3], {"name": "New"}, CONTACTS[0]])["count"] == 3
    assert written(connected) == [*(row["name"] for row in CONTACTS), "New"]
    lines = results()
    assert [line["row"] for line in lines] == [0, 1, 2, *[None] * 7]
    assert lines[1]["id"] == connected.state.books()[-1]["id"]


def test_equal_rows(connected, run):
    """Two equal rows are two records, also after a clear; a third is a third."""
    run([CONTACTS[0]] * 2)
    assert len(written(connected)) == 2
    run([CONTACTS[0]] * 3)
    assert len(written(connected)) == 3


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


def test_files_that_are_missing(connected, run, results, tmp_path, monkeypatch):
    """A row whose file can't exist is rejected and harms no others; a file that can't be read now stops the task."""
    (tmp_path / "there").write_text("x")
    names = ("absent", ".", "there/absent", "n" * 300, "\0", "there")
    rows = [{**TICKET, "attachment": f"{tmp_path}/./{name}"} for name in names]
    root = {"attachments_root": tmp_path.parent}
    assert run(rows, "ticket", max_failed_share=1, **root)["rejected"] == 5
    assert [line["result"] for line in results()] == ["rejected"] * 5 + ["done"]
    assert [line.get("message", "").partition("nothing was sent: ")[2] for line in results()] == [
        "No such file or directory.",
        "Is a directory.",
        "Not a directory.",
        "File name too long.",
        "embedded null byte.",
        "",
    ]
    with monkeypatch.context() as patch:
        patch.setattr(uploads, "storage_path", lambda path: (_ for _ in ()).throw(FileNotFoundError("of a storage")))
        assert run(rows, "ticket", max_failed_share=1, **root)["rejected"] == 5
    assert results()[0]["message"].endswith("/absent can't be read, so nothing was sent: of a storage.")
    with monkeypatch.context() as patch:
        patch.setattr(uploads, "storage_path", lambda path: 1 / 0)
        with pytest.raises(OneboxError, match="can't be read") as caught:
            run(rows, "ticket", max_failed_share=1, **root)
    assert type(caught.value) is OneboxError
    assert caught.value.retryable


def test_unknown_scheme(connected, run, results):
    """A row whose file is in a storage that Airflow does not know is rejected."""
    row = {**TICKET, "file": ["unheard://bucket/a"]}
    assert run([row, TICKET], "ticket", max_failed_share=1, attachments_root="unheard://bucket/")["done"] == 1
    assert results()[0]["message"].startswith("unheard://bucket/a can't be read, so nothing was sent: ")


@pytest.mark.parametrize(("kind", "name"), [("ticket", "attachment"), ("ticket", "file"), ("message", "attachments")])
def test_files_of_the_worker(connected, run, results, tmp_path, kind, name):
    """Rows name files below attachments_root alone, whatever links and dots there are; without one, none."""
    root, outside = tmp_path / "root", tmp_path / "rootless"
    for folder in (root, outside):
        folder.mkdir()
        (folder / "a.txt").write_text("geheim")
    (root / "link").symlink_to(outside)
    (root / "here").symlink_to("a.txt")
    fields = TICKET if kind == "ticket" else {"connection_id": "3", "body": "x"}
    allowed = [f"{root}/a.txt", f"{root}/x/../a.txt", f"file://{root}/here", [f"{root}/a.txt", f"{root}/here"]]
    refused = ["/proc/self/environ", f"{root}/link/a.txt", f"{root}/../rootless/a.txt", f"{outside}/a.txt", str(root)]
    refused += [f"file://{outside}/a.txt", f"{root}/x://../../rootless/a.txt", "s3://bucket/a.txt", {"a": 1}]
    refused += [[f"{root}/a.txt", f"{outside}/a.txt"]]
    rows = [{**fields, name: path} for path in (*allowed, *refused)]
    assert run(rows, kind, max_failed_share=1, attachments_root=root)["done"] == len(allowed)
    assert [line["result"] for line in results()] == ["done"] * len(allowed) + ["rejected"] * len(refused)
    assert results()[len(allowed)]["message"] == (
        f"The row names the file '/proc/self/environ', and that is not below attachments_root {root}: nothing was "
        "sent. Set attachments_root to the folder whose files rows may attach."
    )
    assert len(connected.state.books()) == len(allowed)
    for nothing in (None, "", "None"):
        (tmp_path / "results.jsonl").unlink()
        assert run(rows, kind, max_failed_share=1, attachments_root=nothing)["rejected"] == len(rows)
        assert "', and attachments_root is not set: nothing was sent." in results()[0]["message"]
    assert len(connected.state.books()) == len(allowed)


@pytest.mark.parametrize("path", ["s3://c@b/f/a", "s3://c@b/f/x/../a"])
def test_resolve_remote(path):
    """In an object storage, dots are resolved as well; a path that names another storage inside is refused."""
    assert uploads.resolve_below("s3://c@b/f", path) == ["s3://c@b/f/a"]
    assert uploads.resolve_below("s3://c@b/f/", [path]) == ["s3://c@b/f/a"]
    for other in ("s3://c@b/f/../g/a", "s3://c@b/fa", "s3://b/f/a", "gs://c@b/f/a", "s3://c@b/f/a::file://passwd"):
        with pytest.raises(OneboxConfigError, match="is not below attachments_root s3://c@b/f"):
            uploads.resolve_below("s3://c@b/f", [other])


def test_rows_of_mapped_tasks(connected, run, results):
    """The lists of mapped tasks are one list of rows."""
    assert run([CONTACTS[:2], (CONTACTS[2],), [], CONTACTS[3]])["done"] == 4
    assert [line["row"] for line in results()] == [0, 1, 2, 3]
    assert written(connected) == [row["name"] for row in CONTACTS[:4]]


def test_rows_beyond_json(connected, run, results):
    """A row that is no JSON, such as one cut within an emoji, harms no others and is recognized again."""
    rows = [CONTACTS[0], {"name": "\ud83d"}, {1: 2}, CONTACTS[1]]
    assert run(rows, max_failed_share=1)["count"] == 4
    first = results()
    assert [line["result"] for line in first] == ["done", "done", "rejected", "done"]
    assert run(rows, max_failed_share=1)["done"] == 3
    assert results() == first


def test_reasons_in_the_log(connected, run, caplog):
    """The log tells why the first rows were rejected or are uncertain, in their order."""
    connected.state.fail("drop_after", path="contactrz")
    run([CONTACTS[0], {}, CONTACTS[1], *[{"nam": "x"}] * 30], parallelism=1, max_failed_share=1)
    told = [record.getMessage() for record in caplog.records if record.name == results_file.log.name]
    assert len(told) == 20
    assert told[0].startswith("Row 0 is uncertain: Connection 'onebox_default', site 169: POST contactrz: ")
    assert told[1] == "Row 1 is rejected: A contact needs a name, an e-mail address, a number or an account."


@pytest.mark.parametrize(("share", "fails"), [(0, True), (0.2, True), (0.25, False), (1, False)])
def test_share(connected, run, share, fails):
    """The task fails if more than a share of the rows is not done."""
    rows = [*CONTACTS[:3], {}]
    if fails:
        with pytest.raises(OneboxRequestError):
            run(rows, max_failed_share=share)
    else:
        assert run(rows, max_failed_share=share)["rejected"] == 1


def test_in_doubt(connected, run, results):
    """A row whose answer is lost is uncertain, fails the task for good, and is repeated only if asked to."""
    connected.state.fail("drop_after", path="contactrz", after=2)
    with pytest.raises(
        OneboxUncertainWriteError,
        match=r"8 are done, 0 rejected, 1 uncertain\. Row 2 is uncertain: .*\. Those uncertain may have",
    ):
        run(parallelism=1)
    (line,) = [line for line in results() if line["result"] == "uncertain"]
    assert line["row"] == 2
    assert "look in Onebox" in line["message"]
    assert run(max_failed_share=1)["uncertain"] == 1
    assert len(connected.state.books()) == 9
    assert run(repeat_uncertain=True)["done"] == 9
    assert written(connected).count("Contact 2") == 2


def test_deleted_line(connected, run, results, tmp_path):
    """A row whose line a human deletes is written again."""
    run()
    path = tmp_path / "results.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    run()
    assert written(connected).count("Contact 0") == 2
    assert [line["row"] for line in results()] == list(range(9))


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


def test_target(connected, run):
    """The same row at another site is another row."""
    run()
    assert run(site_id="170")["done"] == 9
    assert len(written(connected)) == 18


def test_path_of_another_run(connected, run, tmp_path):
    """A file of another run is never taken for this run's, and stays as it is."""
    run()
    before = (tmp_path / "results.jsonl").read_bytes()
    with pytest.raises(
        OneboxConfigError, match=r"holds the results of another run or task: nothing was sent.*run_id }}"
    ):
        run(run_id="r2")
    assert (tmp_path / "results.jsonl").read_bytes() == before
    assert len(connected.state.books()) == 9
    assert not is_open(tmp_path / "results.jsonl")


@pytest.mark.parametrize("text", ['{"Id": "7"}\n', "x\n", '{"row": "x"}\n', "\n", "x", '{"Id": "7"}'])
def test_not_results(connected, run, tmp_path, text):
    """A file with anything else in it is not touched, whether its last line is whole or not."""
    (tmp_path / "results.jsonl").write_text(text)
    with pytest.raises(OneboxConfigError, match=r"line 1, is not a result: nothing was sent"):
        run()
    assert (tmp_path / "results.jsonl").read_text() == text
    assert not connected.state.requests


@pytest.mark.parametrize("path", ["s3://aws_default@bucket/v.jsonl", "gs://bucket/v.jsonl", "v.jsonl.gz"])
def test_paths_that_cannot_be_appended_to(connected, run, path):
    """Object stores and gzip files are rejected with the remedy, installed or not."""
    with pytest.raises(OneboxConfigError, match=r"can't be appended to.* on a volume that all workers share"):
        run(path=path)
    assert not connected.state.requests


def test_templates_in_paths(tmp_path):
    """A template in a Path is rendered as in a text."""
    folder = Path("{{ folder }}")
    task = OneboxBulkWriteOperator(task_id="t", kind="ticket", rows=folder / "r", results_path=folder / "{{ run_id }}")
    task.dag = DAG("d", schedule=None)
    task.render_template_fields({"folder": str(tmp_path), "run_id": "r1"})
    assert (task.rows, task.results_path) == (f"{tmp_path}/r", f"{tmp_path}/r1")


def test_no_path(connected, run):
    """A path that a template has not found is rejected by its own name."""
    with pytest.raises(OneboxConfigError, match="results_path='None' names no file"):
        run(path="None")
    assert not connected.state.requests


def test_new_folder(connected, run, tmp_path):
    """A folder that is not there yet is made, with those above it."""
    assert run([], path=tmp_path / "new" / "folder" / "v.jsonl")["count"] == 0


def test_file_url(connected, run, tmp_path, results):
    """A local file may be named by its URL."""
    assert run(path=f"file://{tmp_path}/results.jsonl")["done"] == 9
    assert len(results()) == 9


def test_two_processes(connected, run, tmp_path):
    """A file that another process works on is left to it; a retry can help."""
    with (tmp_path / "results.jsonl").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(OneboxError, match="in use by another process of this task: nothing was sent") as caught:
            run()
    assert caught.value.retryable
    assert not connected.state.requests
    assert not is_open(tmp_path / "results.jsonl")
    assert run()["done"] == 9


def test_replaced_between_open_and_lock(connected, run, monkeypatch, tmp_path):
    """A file that another process has just replaced is not taken for the present one."""
    path = tmp_path / "results.jsonl"
    run()
    lock, locks = fcntl.flock, []

    def flock(*args):
        if not locks:
            # The other process finishes here.
            path.with_suffix(".new").write_bytes(path.read_bytes())
            path.with_suffix(".new").replace(path)
        locks.append(args)
        lock(*args)

    monkeypatch.setattr(fcntl, "flock", flock)
    assert run()["done"] == 9
    assert len(connected.state.books()) == 9
    assert len(locks) == 3
    assert not is_open(path)


def test_no_locks(connected, run, monkeypatch):
    """Without locks two processes could write the same rows, so nothing is written."""

    def flock(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OneboxConfigError, match=r"can't be locked \(No locks available\)"):
        run()
    assert not connected.state.requests


def test_no_folder(connected, run, tmp_path):
    """A folder that can't be made is named."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OneboxError, match=r"file/v\.jsonl can't be opened: (Not a directory|File exists)") as caught:
        run(path=tmp_path / "file" / "v.jsonl")
    assert caught.value.retryable


def test_torn_line(connected, run, results, tmp_path):
    """What a machine was writing when it failed is dropped: no row was sent on the strength of it."""
    run()
    path = tmp_path / "results.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:9])
    assert run()["done"] == 9
    assert len(connected.state.books()) == 10
    assert [line["row"] for line in results()] == list(range(9))
    path.write_bytes(lines[0] + bytes(9))  # Some file systems fill up with zeros what they have lost.
    assert run()["done"] == 9
    path.write_bytes(lines[0][:3])
    assert run()["done"] == 9


def test_torn_line_and_another_end(connected, run, results, monkeypatch, tmp_path):
    """The lines before a torn one are kept, also if the run that finds it does not come to its end."""
    run()
    path = tmp_path / "results.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)

    def create_contact(self, *, name):
        raise MemoryError

    monkeypatch.setattr(OneboxHook, "create_contact", create_contact)
    for whole in (8, 0):
        path.write_bytes(b"".join(lines[:whole]) + lines[whole][:9])
        with pytest.raises(MemoryError):
            run(parallelism=1)
        assert [line["result"] for line in results()] == ["done"] * whole + ["begun"]


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


def test_permissions(connected, run, monkeypatch, tmp_path):
    """Who may read new files of this process may follow the results, while the task runs and after it."""
    path, modes = tmp_path / "results.jsonl", set()

    def create_contact(self, *, name):
        modes.add(path.stat().st_mode & 0o7777)
        return "1"

    monkeypatch.setattr(OneboxHook, "create_contact", create_contact)
    before = os.umask(0o022)
    try:
        run()
    finally:
        os.umask(before)
    assert modes == {path.stat().st_mode & 0o7777} == {0o644}


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_full_disk(connected, run, monkeypatch, nth):
    """Without room for the intention nothing is sent, without room for the result the row is uncertain."""
    write, written_lines = os.write, []

    def full(number, line):
        if line.startswith(b'{"row"'):
            written_lines.append(line)
            if len(written_lines) == nth:
                return write(number, line[:7])
            if len(written_lines) > nth:
                raise OSError(errno.ENOSPC, "No space left on device")
        return write(number, line)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OneboxError, match=r"results\.jsonl can't be written: no room left") as caught:
            run(parallelism=1)
    assert caught.value.retryable
    sent = len(connected.state.books())
    assert sent == nth // 2
    assert run(max_failed_share=1) | {"path": ""} == {
        "path": "",
        "count": 9,
        "done": 9 - (nth + 1) % 2,
        "rejected": 0,
        "uncertain": (nth + 1) % 2,
    }
    assert len(connected.state.books()) == 9


def test_room_again(connected, run, monkeypatch):
    """Of a line that found no room nothing is left before the next one, which finds some."""
    write, cut = os.write, []

    def write_some(number, line):
        if line.startswith(b'{"row"') and not cut:
            cut.append(line)
            return write(number, line[:7])
        return write(number, line)

    monkeypatch.setattr(os, "write", write_some)
    with pytest.raises(OneboxError, match="no room left"):
        run(parallelism=1)
    assert run()["done"] == 9
    assert written(connected) == [row["name"] for row in CONTACTS]


def test_very_many(tmp_path):
    """Each of thousands of rows has one line."""
    path = tmp_path / "results.jsonl"
    with results_file.ResultsFile(path, ["r1"]) as file:
        for n in range(2500):
            file.note(results_file.RowResult(n, DONE, file.key("row", n)))
        assert file.finish() == ({"done": 2500}, "")
    assert [json.loads(line)["row"] for line in path.read_text().splitlines()] == list(range(2500))


def test_intention_is_on_the_disk_first(connected, run, monkeypatch, results):
    """When Onebox hears of a row, the disk has it already."""
    order, sync = [], os.fsync
    send = OneboxHook.create_contact

    def fsync(number):
        sync(number)
        order.append("disk")

    def create_contact(self, *, name):
        order.append(results()[-1]["result"])
        return send(self, name=name)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(OneboxHook, "create_contact", create_contact)
    run(CONTACTS[:2], parallelism=1)
    # The folder, the row, its result and the next row, and at the end the whole file and the folder again.
    assert order == ["disk", "disk", "begun", "disk", "begun", "disk", "disk"]


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


def test_rows_that_end_with_an_error(connected, run, results, tmp_path):
    """A file of rows with a bad line ends the task after the rows before it, which are not written again."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in CONTACTS[:3]) + "{\n")
    with pytest.raises(OneboxConfigError, match="line 4, is not JSON"):
        run(str(path), parallelism=1)
    assert run(CONTACTS)["done"] == 9
    assert written(connected) == [row["name"] for row in CONTACTS]


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
    connected.state.configure(latency=0.05)
    path = tmp_path / "results.jsonl"
    process = subprocess.Popen([sys.executable, "-c", KILLED, json.dumps(rows), str(path)])
    give_up = time.monotonic() + 60
    while len(connected.state.books()) < 13:
        assert time.monotonic() < give_up
        assert process.poll() is None
        threading.Event().wait(0.005)
    process.kill()
    process.wait()
    connected.state.configure(latency=0)
    result = run(rows, max_failed_share=1)
    assert result["done"] + result["uncertain"] == 40
    assert 0 < result["uncertain"] <= 4
    names = written(connected)
    assert len(names) == len(set(names))
    done = {line["row"] for line in map(json.loads, path.read_text().splitlines()) if line["result"] == "done"}
    assert {rows[n]["name"] for n in done} <= set(names)
    assert set(names) <= {row["name"] for row in rows}
