"""The log lines of a long task."""

from __future__ import annotations

from types import SimpleNamespace

from airflow_provider_onebox.api import progress
from airflow_provider_onebox.api.progress import Progress


def test_progress(monkeypatch, caplog):
    """A line every ten seconds, with the total where it is known, and one at the end."""
    caplog.set_level("INFO")
    now = 100.0
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now))
    count = Progress("ticketrz records")
    for seconds, more, total in ((9.9, 1000, 5000), (0.1, 500, 5000), (9.9, 1, 5000), (0.1, 1, None)):
        now += seconds
        count.add(more, total)
    now += 5
    count.add()
    count.finish()
    assert count.count == 1503
    assert [record.message for record in caplog.records] == [
        "1,500 of 5,000 ticketrz records so far (150/s).",
        "1,502 ticketrz records so far (75/s).",
        "1,503 ticketrz records in 25.0 s.",
    ]
