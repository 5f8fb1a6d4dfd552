"""A bulk write as a task makes it."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from airflow_provider_onebox.operators.bulk import OneboxBulkWriteOperator

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_onebox.sandbox import Sandbox

TICKET = {"full_name": "A", "contact": "a@example.com", "subject": "s", "category": "c", "content": "x"}
CONTACTS = [{"name": f"Contact {n}"} for n in range(9)]


class Bulk:
    """Runs the operator with a results file in a folder.

    :param folder: the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "results.jsonl"

    def run(
        self, rows: Any = CONTACTS, kind: str = "contact", *, run_id: str = "r1", path: Any = None, **options: Any
    ) -> dict[str, Any]:
        """Run the operator; return its result."""
        path = str(path or self.path)
        task = OneboxBulkWriteOperator(task_id="t", kind=kind, rows=rows, results_path=path, **options)
        ti = SimpleNamespace(dag_id="d", task_id="t", run_id=run_id, map_index=-1)
        return task.execute({"ti": ti})

    def results(self) -> list[dict[str, Any]]:
        """Return the lines of the results file."""
        return [json.loads(line) for line in self.path.read_text().splitlines()]


def written(sandbox: Sandbox, field: str = "Name") -> list[str]:
    """Return what Onebox has of the rows, in order."""
    return sorted(entry["body"][field] for entry in sandbox.state.books() if entry["id"])
