"""Files as an export writes them."""

from __future__ import annotations

import os
from typing import Any

from airflow_provider_onebox.files.records import RecordFile

NAMES = ["a.jsonl", "a.jsonl.gz", "a.csv", "a.csv.gz", "a.parquet"]
ROWS = [{"Id": "1", "Subject": "é\n"}, {"Id": "2", "Subject": None}]


def entries(folder: Any) -> list[str]:
    """Return all names in a folder, hidden ones too."""
    return sorted(os.listdir(folder))  # noqa: PTH208


def write(path: Any, rows: Any = ROWS, fields: Any = None, **options: Any) -> str:
    """Write a file as an export does; return its digest."""
    with RecordFile(path, fields=fields, **options) as file:
        file.write(rows)
        file.finish()
        digest = file.digest()
        file.publish()
    return digest
