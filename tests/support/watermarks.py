"""What an incremental export meets of Airflow: Variables, state stores of assets, and the instances that run."""

from __future__ import annotations

import json
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

from airflow_provider_onebox.files.watermark import Variable


class StateStore(dict[str, str]):
    """The state store of an asset, as Airflow 3.3 has it."""


class Deployment:
    """One Airflow, shared by all the task runs of a test.

    :param monkeypatch: puts its Variables in the place of Airflow's own.
    """

    def __init__(self, monkeypatch: Any) -> None:
        self.variables: dict[str, str] = {}
        self.stores: dict[str, StateStore] | None = {"asset": StateStore()}
        self.running: set[tuple[str, str, str, int]] = set()
        self.before = lambda step: None  # is told of each step before it is taken
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

    def context(
        self,
        run_id: str = "r1",
        task_id: str = "t",
        dag_id: str = "d",
        map_index: int = -1,
        try_number: int = 1,
        max_tries: int = 2,
    ) -> dict[str, Any]:
        """Return the context of a task try."""
        ids = {"dag_id": dag_id, "task_id": task_id, "run_id": run_id, "map_index": map_index}
        ti = SimpleNamespace(**ids, try_number=try_number, max_tries=max_tries)

        def get_ti_count(
            dag_id: str, map_index: int, task_ids: list[str], states: list[str], run_ids: list[str] | None = None
        ) -> int:
            assert states == ["running", "restarting"]
            self.before("count")
            same = [one for one in self.running if (one[0], one[3]) == (dag_id, map_index) and one[1] in task_ids]
            return len([one for one in same if run_ids is None or one[2] in run_ids])

        ti.get_ti_count = get_ti_count
        return {"ti": ti, "outlet_events": defaultdict(lambda: SimpleNamespace(extra={}))} | (
            {} if self.stores is None else {"asset_state_store": self.stores}
        )

    def watermark(self, key: str = "onebox_watermark@d@t@onebox_default@169@ticketrz") -> dict[str, Any]:
        """Return what is stored."""
        return dict(json.loads(self.variables[key]))
