"""Where an incremental listing begins: the mark, moved only after the output is in place.

A task can die at any moment, and can be cleared long afterwards. So the mark is more than a number:

- ``last``: the last id that was written.
- ``runs``: for each of the latest runs, where it began and how far it came. A run that is repeated writes
  the same range again, and the mark stays.
- ``pending``: written before a file is put in place: where it goes, its digest and its last id. If the task
  dies before the mark is moved, the next run looks at the file itself to learn whether it got there.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_provider_onebox.exceptions import OneboxConfigError, OneboxError, quote
from airflow_provider_onebox.output import digest_at

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

KEPT_RUNS = 500
"""Runs whose range is remembered, for when one of them is repeated."""

MAX_KEY = 250


@dataclass
class Mark:
    """The mark of one task, connection, site and resource; reads and writes itself.

    On Airflow 3.3 it lives in the state store of the task's outlet asset, if the task has just one; else in
    an Airflow Variable. Both are named :attr:`key`.

    :param context: the task's context.
    :param outlets: the task's outlets.
    :param scope: connection, site and resource.
    :param state: what is stored, as last read; not for the caller.
    """

    context: Context
    outlets: list[Any]
    scope: tuple[str, str, str]
    state: dict[str, Any] = field(default_factory=dict, init=False)
    _found: dict[str, Any] | None = field(default=None, init=False)

    @property
    def key(self) -> str:
        """``onebox_mark.<dag>.<task>.<connection>.<site>.<resource>``, its end hashed if it is too long."""
        ti = self.context["ti"]
        key = ".".join(("onebox_mark", ti.dag_id, ti.task_id, *self.scope))
        if len(key) <= MAX_KEY:
            return key
        return f"{key[: MAX_KEY - 33]}.{hashlib.sha256(key.encode()).hexdigest()[:32]}"

    @property
    def run_id(self) -> str:
        """The DAG run that this task run belongs to."""
        return str(self.context["ti"].run_id)

    def begin(self, start: int) -> tuple[int, int | None]:
        """Find out what this run has to list.

        :param start: where to begin if nothing was ever written.
        :return: records with ids greater than the first, up to the second; ``None`` for all there are.
        :raises OneboxConfigError: if the stored mark can't be read.
        """
        self._found = self._read()
        self.state = self._found or {"last": start, "runs": {}}
        pending = self.state.get("pending")
        if pending and pending["run_id"] != self.run_id:
            # The task died between putting a file in place and moving the mark, or just before.
            self.state = {name: value for name, value in self.state.items() if name != "pending"}
            if digest_at(pending["path"]) == pending["digest"]:
                self._settle(pending["run_id"], pending["after"], pending["last"])
        if self.run_id in self.state["runs"]:
            after, upto = self.state["runs"][self.run_id]
            return after, upto
        return self.state["pending"]["after"] if "pending" in self.state else self.state["last"], None

    def announce(self, path: str, digest: str, after: int, last: int) -> None:
        """Write down what is about to be put in place.

        :param path: where.
        :param digest: what.
        :param after: where its range begins.
        :param last: the last id in it.
        :raises OneboxError: if another run has moved the mark since :meth:`begin`.
        """
        if self._read() != self._found:
            raise OneboxError(
                f"The mark {self.key!r} was moved by another run of the task meanwhile, so this one may have listed "
                "the same records: nothing was written. Set max_active_runs=1 on the DAG."
            )
        pending = {"run_id": self.run_id, "path": path, "digest": digest, "after": after, "last": last}
        self._write({**self.state, "pending": pending})

    def move(self, after: int, last: int) -> None:
        """Move the mark, now that the output is in place.

        :param after: where this run's range began.
        :param last: the last id that was written.
        """
        self._settle(self.run_id, after, last)
        self.state.pop("pending", None)
        self._write(self.state)

    def _settle(self, run_id: str, after: int, last: int) -> None:
        runs = {**self.state["runs"], run_id: [after, last]}
        self.state["runs"] = dict(list(runs.items())[-KEPT_RUNS:])
        self.state["last"] = max(self.state["last"], last)

    def _store(self) -> Any:
        # get() and not []: only Airflow 3.3 has the store, and only for a task with an inlet or outlet.
        stores = self.context.get("asset_state_store")
        if stores is None or len(self.outlets) != 1:
            return None
        try:
            return stores[self.outlets[0]]
        except (KeyError, TypeError):  # An alias has no store.
            return None

    def _read(self) -> dict[str, Any] | None:
        store = self._store()
        if store is not None:
            text = store.get(self.key)
        else:
            from airflow.providers.common.compat.sdk import Variable

            text = Variable.get(self.key, None)
        if text is None:
            return None
        try:
            state = json.loads(text)
            return {**state, "last": int(state["last"]), "runs": dict(state["runs"])}
        except (ValueError, TypeError, KeyError):
            raise OneboxConfigError(
                f"The mark {self.key!r} is {quote(text)!r}, which this provider has not written. Delete it to begin "
                'anew, or set it to {"last": <id>, "runs": {}} to begin after that id.'
            ) from None

    def _write(self, state: dict[str, Any]) -> None:
        text = json.dumps(state)
        store = self._store()
        if store is not None:
            store.set(self.key, text)
            return
        from airflow.providers.common.compat.sdk import Variable

        Variable.set(self.key, text)
