"""The results file names each row before it is sent, and recognizes it later, however the process ends."""

from __future__ import annotations

import errno
import fcntl
import json
import os

import pytest
from support.bulk import CONTACTS, written

from airflow_provider_onebox.exceptions import OneboxConfigError, OneboxError
from airflow_provider_onebox.hooks.onebox import OneboxHook
from airflow_provider_onebox.writes import DONE
from airflow_provider_onebox.writes import results as results_file


def is_open(path):
    """Return whether this process has a file open, or one that was replaced meanwhile."""
    numbers = os.listdir("/dev/fd")  # noqa: PTH208 - one of them is this listing's own
    return any(os.path.realpath(f"/dev/fd/{number}").startswith(str(path)) for number in numbers)


def test_cleared(connected, bulk):
    """A cleared task writes only what is new, in any order; rows that are gone are kept, without a position."""
    bulk.run()
    assert bulk.run()["done"] == 9
    assert bulk.run([CONTACTS[3], {"name": "New"}, CONTACTS[0]])["count"] == 3
    assert written(connected) == [*(row["name"] for row in CONTACTS), "New"]
    lines = bulk.results()
    assert [line["row"] for line in lines] == [0, 1, 2, *[None] * 7]
    assert lines[1]["id"] == connected.state.books()[-1]["id"]


def test_equal_rows(connected, bulk):
    """Two equal rows are two records, also after a clear; a third is a third."""
    bulk.run([CONTACTS[0]] * 2)
    assert bulk.run([CONTACTS[0]] * 3)["done"] == 3
    assert len(written(connected)) == 3


def test_reasons_in_the_log(connected, bulk, caplog):
    """The log says why the first rows were rejected or are uncertain, in their order."""
    connected.state.fail("drop_after", path="contactrz")
    bulk.run([CONTACTS[0], {}, CONTACTS[1], *[{"nam": "x"}] * 30], parallelism=1, max_failed_share=1)
    logged = [record.getMessage() for record in caplog.records if record.name == results_file.log.name]
    assert len(logged) == 20
    assert logged[0].startswith("Row 0 is uncertain: Connection 'onebox_default', site 169: POST contactrz: ")
    assert logged[1] == "Row 1 is rejected: A contact needs a name, an e-mail address, a number or an account."


def test_deleted_line(connected, bulk):
    """A row whose line a human deletes is written again."""
    bulk.run()
    bulk.path.write_text("".join(bulk.path.read_text().splitlines(keepends=True)[1:]))
    bulk.run()
    assert written(connected).count("Contact 0") == 2
    assert [line["row"] for line in bulk.results()] == list(range(9))


def test_path_of_another_run(connected, bulk):
    """A file of another run is never taken for this run's, and stays as it is."""
    bulk.run()
    before = bulk.path.read_bytes()
    with pytest.raises(
        OneboxConfigError, match=r"holds the results of another run or task: nothing was sent.*run_id }}"
    ):
        bulk.run(run_id="r2")
    assert bulk.path.read_bytes() == before
    assert len(connected.state.books()) == 9
    assert not is_open(bulk.path)


@pytest.mark.parametrize("text", ['{"Id": "7"}\n', "x\n", '{"row": "x"}\n', "\n", "x", '{"Id": "7"}'])
def test_not_results(connected, bulk, text):
    """A file with anything else in it is not touched, whether its last line is whole or not."""
    bulk.path.write_text(text)
    with pytest.raises(OneboxConfigError, match=r"line 1, is not a result: nothing was sent"):
        bulk.run()
    assert bulk.path.read_text() == text
    assert not connected.state.requests


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("s3://aws_default@bucket/v.jsonl", "can't be appended to.* on a volume that all workers share"),
        ("gs://bucket/v.jsonl", "can't be appended to"),
        ("v.jsonl.gz", "can't be appended to"),
        ("None", "results_path='None' names no file"),
    ],
)
def test_bad_path(connected, bulk, path, reason):
    """Object stores, installed or not, and gzip files are rejected with the remedy, and so is an empty template."""
    with pytest.raises(OneboxConfigError, match=reason):
        bulk.run(path=path)
    assert not connected.state.requests


def test_file_url(connected, bulk, tmp_path):
    """A local file may be named by its URL; its folder is created, with those above it."""
    path = tmp_path / "new" / "folder" / "v.jsonl"
    assert bulk.run(path=f"file://{path}")["done"] == 9
    assert len(path.read_text().splitlines()) == 9


def test_two_processes(connected, bulk):
    """A file that another process works on is left to it; a retry can help."""
    with bulk.path.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(OneboxError, match="in use by another process of this task: nothing was sent") as caught:
            bulk.run()
    assert caught.value.retryable
    assert not connected.state.requests
    assert not is_open(bulk.path)
    assert bulk.run()["done"] == 9


def test_replaced_between_open_and_lock(connected, bulk, monkeypatch):
    """A file that another process has just replaced is not taken for the present one."""
    bulk.run()
    lock, locks = fcntl.flock, []

    def flock(*args):
        if not locks:
            # The other process finishes here.
            new = bulk.path.with_suffix(".new")
            new.write_bytes(bulk.path.read_bytes())
            new.replace(bulk.path)
        locks.append(args)
        lock(*args)

    monkeypatch.setattr(fcntl, "flock", flock)
    assert bulk.run()["done"] == 9
    assert len(connected.state.books()) == 9
    assert len(locks) == 3
    assert not is_open(bulk.path)


def test_no_locks(connected, bulk, monkeypatch):
    """Without locks two processes could write the same rows, so nothing is written."""

    def flock(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OneboxConfigError, match=r"can't be locked \(No locks available\)"):
        bulk.run()
    assert not connected.state.requests


def test_no_folder(connected, bulk, tmp_path):
    """A folder that can't be made is named."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OneboxError, match=r"file/v\.jsonl can't be opened: (Not a directory|File exists)") as caught:
        bulk.run(path=tmp_path / "file" / "v.jsonl")
    assert caught.value.retryable


def test_torn_line(connected, bulk):
    """What a machine was writing when it failed is dropped: the row that it names was not sent."""
    bulk.run()
    lines = bulk.path.read_bytes().splitlines(keepends=True)
    bulk.path.write_bytes(b"".join(lines[:-1]) + lines[-1][:9])
    assert bulk.run()["done"] == 9
    assert len(connected.state.books()) == 10
    assert [line["row"] for line in bulk.results()] == list(range(9))
    # Some file systems fill up with zeros what they have lost.
    for torn in (lines[0] + bytes(9), lines[0][:3]):
        bulk.path.write_bytes(torn)
        assert bulk.run()["done"] == 9


def test_torn_line_and_another_end(connected, bulk, monkeypatch):
    """The lines before a torn one are kept, also if the run that finds it fails."""
    bulk.run()
    lines = bulk.path.read_bytes().splitlines(keepends=True)

    def create_contact(self, *, name):
        raise MemoryError

    monkeypatch.setattr(OneboxHook, "create_contact", create_contact)
    for whole in (8, 0):
        bulk.path.write_bytes(b"".join(lines[:whole]) + lines[whole][:9])
        with pytest.raises(MemoryError):
            bulk.run(parallelism=1)
        assert [line["result"] for line in bulk.results()] == ["done"] * whole + ["begun"]


def test_permissions(connected, bulk, monkeypatch):
    """Who may read new files of this process may follow the results, while the task runs and after it."""
    modes = set()

    def create_contact(self, *, name):
        modes.add(bulk.path.stat().st_mode & 0o7777)
        return "1"

    monkeypatch.setattr(OneboxHook, "create_contact", create_contact)
    before = os.umask(0o022)
    try:
        bulk.run()
    finally:
        os.umask(before)
    assert modes == {bulk.path.stat().st_mode & 0o7777} == {0o644}


@pytest.mark.parametrize(("nth", "stays_full"), [(1, True), (2, True), (3, True), (4, True), (1, False)])
def test_full_disk(connected, bulk, monkeypatch, nth, stays_full):
    """Without room for the intention nothing is sent, without room for the result the row is uncertain.

    Of a line that found no room nothing is left before the next one, which may find some.
    """
    write, lines = os.write, []

    def full(number, line):
        if line.startswith(b'{"row"'):
            lines.append(line)
            if len(lines) == nth:
                return write(number, line[:7])
            if len(lines) > nth and stays_full:
                raise OSError(errno.ENOSPC, "No space left on device")
        return write(number, line)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OneboxError, match=r"results\.jsonl can't be written: no room left") as caught:
            bulk.run(parallelism=1)
    assert caught.value.retryable
    assert len(connected.state.books()) == nth // 2
    uncertain = (nth + 1) % 2
    results = {"count": 9, "done": 9 - uncertain, "rejected": 0, "uncertain": uncertain}
    assert bulk.run(max_failed_share=1) == {"path": str(bulk.path), **results}
    assert written(connected) == [row["name"] for row in CONTACTS]


def test_very_many(tmp_path):
    """Each of thousands of rows has one line."""
    path = tmp_path / "results.jsonl"
    with results_file.ResultsFile(path, ["r1"]) as file:
        for n in range(2500):
            file.note(results_file.RowResult(n, DONE, file.key("row", n)))
        assert file.finish() == ({"done": 2500}, "")
    assert [json.loads(line)["row"] for line in path.read_text().splitlines()] == list(range(2500))


def test_intention_is_on_the_disk_first(connected, bulk, monkeypatch):
    """A row is on the disk before it is sent."""
    order, sync = [], os.fsync
    send = OneboxHook.create_contact

    def fsync(number):
        sync(number)
        order.append("disk")

    def create_contact(self, *, name):
        order.append(bulk.results()[-1]["result"])
        return send(self, name=name)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(OneboxHook, "create_contact", create_contact)
    bulk.run(CONTACTS[:2], parallelism=1)
    # The folder, the row, its result and the next row, and at the end the whole file and the folder again.
    assert order == ["disk", "disk", "begun", "disk", "begun", "disk", "disk"]
