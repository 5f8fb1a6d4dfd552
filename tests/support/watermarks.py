"""The Airflow of an incremental export: its Variables, and the state of task instances."""

from __future__ import annotations

import json
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_onebox.api.pagination import Batch
from airflow_provider_onebox.files.records import RecordFile
from airflow_provider_onebox.files.watermark import Variable


class Deployment:
    """One Airflow, shared by all the task tries of a test.

    :param monkeypatch: replaces Airflow's own Variables.
    """

    def __init__(self, monkeypatch: Any) -> None:
        self.variables: dict[str, str] = {}
        self.running: set[tuple[str, str, str, int]] = set()
        self.succeeded: set[tuple[str, str, str, int]] = set()
        self.before = lambda step: None  # called before each step
        monkeypatch.setattr(Variable, "get", self._get)
        monkeypatch.setattr(Variable, "set", self._set)
        monkeypatch.setattr(Variable, "delete", self._delete)

    def _get(self, key: str, default: Any) -> Any:
        self.before("read")
        return self.variables.get(key, default)

    def _set(self, key: str, value: str) -> None:
        assert isinstance(value, str)
        self.before("write")
        self.variables[key] = value

    def _delete(self, key: str) -> None:
        self.before("delete")
        self.variables.pop(key, None)

    def ti(
        self,
        run_id: str = "r1",
        task_id: str = "t",
        dag_id: str = "d",
        map_index: int = -1,
        try_number: int = 1,
        max_tries: int = 2,
    ) -> Any:
        """Return a task instance."""
        ids = {"dag_id": dag_id, "task_id": task_id, "run_id": run_id, "map_index": map_index}
        ti = SimpleNamespace(**ids, try_number=try_number, max_tries=max_tries)

        def get_ti_count(
            dag_id: str,
            map_index: int | None = None,
            task_ids: list[str] | None = None,
            states: list[str] | None = None,
            run_ids: list[str] | None = None,
        ) -> int:
            assert task_ids is not None
            assert states in (["running", "restarting"], ["running", "restarting", "success"])
            self.before("count")
            found = self.running | (self.succeeded if "success" in states else set())
            found = {one for one in found if one[0] == dag_id and one[1] in task_ids}
            found = {one for one in found if map_index in (None, one[3])}
            return len([one for one in found if run_ids is None or one[2] in run_ids])

        ti.get_ti_count = get_ti_count
        return ti

    def context(self, *args: Any, **names: Any) -> dict[str, Any]:
        """Return the context of a task try; the arguments are those of :meth:`ti`."""
        return {"ti": self.ti(*args, **names), "outlet_events": defaultdict(lambda: SimpleNamespace(extra={}))}

    def watermark(self, key: str = "onebox_watermark@d@t@onebox_default@169@ticketrz") -> dict[str, Any]:
        """Return what is stored."""
        return dict(json.loads(self.variables[key]))


KEY = "onebox_watermark@d@t@crm@169@ticketrz"
SCOPE = ("crm", "169", "ticketrz")


def pages(*records, size=3):
    """List some records, given by their ids."""

    def listing(after, most):
        found = [row for row in records if row > after]
        for first in range(0, len(found), size):
            page = found[first : first + size]
            yield Batch([{"Id": str(row)} for row in page], page[-1], len(found))

    return listing


def upto(last):
    """List records 1 to a last one."""
    return pages(*range(1, last + 1))


def ids(path):
    """Read the ids in a file."""
    return [int(json.loads(line)["Id"]) for line in Path(path).read_text().splitlines()]


class Killed(BaseException):
    """The process is gone."""


@contextmanager
def killed(airflow, step, nth=1):
    """Kill a process before a step of its work with the Variable."""
    seen = []

    def before(name):
        seen.append(name)
        if seen.count(step) == nth:
            raise Killed

    airflow.before = before
    with pytest.raises(Killed):
        yield
    airflow.before = lambda step: None


@contextmanager
def killed_before(method, monkeypatch):
    """Kill a process before it publishes its file, or removes it."""

    def die(file):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RecordFile, method, die)
        with pytest.raises(Killed):
            yield
