"""Several calls in flight: their order, their errors, their end."""

from __future__ import annotations

import threading

import pytest

from airflow_provider_onebox.api import parallel, progress
from airflow_provider_onebox.api.parallel import in_parallel
from airflow_provider_onebox.exceptions import OneboxConfigError


def test_parallel_in_order():
    """All threads work at once, and the results come in the order of the items."""
    barrier = threading.Barrier(3, timeout=10)

    def call(item):
        barrier.wait()
        return -item

    assert list(in_parallel(call, range(9), 3)) == [-item for item in range(9)]


def test_parallel_reads_few_ahead():
    """Items are read as they are needed: no more than twice as many as there are threads."""
    read = []
    results = in_parallel(str, (read.append(n) or n for n in range(100)), 2)
    assert read == []
    assert next(results) == "0"
    assert len(read) == 4
    results.close()


def test_parallel_error():
    """An error ends the calls in flight before it is raised, and begins no others."""
    begun, ended = [], []
    go_on = threading.Event()

    def call(item):
        begun.append(item)
        if item == 0:
            go_on.set()
            raise ValueError("no")
        go_on.wait(10)
        ended.append(item)

    with pytest.raises(ValueError, match="no"):
        list(in_parallel(call, range(100), 2))
    assert set(begun) == {0, *ended}
    assert len(begun) <= 4


def test_parallel_end(monkeypatch):
    """Calls that have not begun when the caller has enough are dropped, and those in flight are waited for."""
    begun, ended, go_on = [], [], threading.Event()

    class Pool(parallel.ThreadPoolExecutor):
        def shutdown(self, wait=True, **options):
            super().shutdown(wait=False, **options)
            go_on.set()
            super().shutdown(wait=wait)

    def call(item):
        begun.append(item)
        if item:
            go_on.wait(10)
        ended.append(item)

    monkeypatch.setattr(parallel, "ThreadPoolExecutor", Pool)
    results = in_parallel(call, range(100), 2)
    next(results)
    results.close()
    assert set(begun) == set(ended) <= {0, 1, 2}


@pytest.mark.parametrize(("what", "named"), [((), "rows"), (("tickets",), "tickets")])
def test_progress_is_logged(monkeypatch, caplog, what, named):
    """The log says how many items are done."""
    caplog.set_level("INFO")
    monkeypatch.setattr(progress, "LOG_SECONDS", 0)
    assert len(list(in_parallel(str, range(3), 1, *what))) == 3
    assert [record.message.split(" (")[0] for record in caplog.records] == [f"{n} {named} so far" for n in (1, 2, 3)]


def test_parallelism():
    """From 1 to 32 threads are allowed; another number is rejected at once."""
    for parallelism in (1, 32, "2"):
        assert list(in_parallel(str, range(2), parallelism)) == ["0", "1"]
    for parallelism in (0, 33, True, "two", None):
        with pytest.raises(OneboxConfigError, match="is not a whole number from 1 to 32"):
            in_parallel(str, [], parallelism)
