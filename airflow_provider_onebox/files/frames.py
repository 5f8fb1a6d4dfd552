"""Records as a data frame, through Arrow."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from airflow_provider_onebox.exceptions import OneboxConfigError
from airflow_provider_onebox.files.records import as_text, check_fields

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

FRAMES = ("pandas", "polars")
"""The libraries whose frames can be made."""


def require(library: str) -> None:
    """See that what a frame needs is installed, before anything is listed.

    :param library: one of :data:`FRAMES`.
    :raises OneboxConfigError: if it is missing, or pyarrow is.
    """
    for name in ("pyarrow", library):
        try:
            import_module(name)
        except ImportError:
            raise OneboxConfigError(f"A frame of {library} needs {name}: pip install {name}") from None


def frame_of(records: Iterable[dict[str, Any]], library: str, fields: Sequence[str] | None = None) -> Any:
    """Make a frame of records.

    :param records: the records.
    :param library: one of :data:`FRAMES`.
    :param fields: the columns, in this order; all fields that a record has, as they first come, if ``None``.
    :return: the frame; its columns are text, and what a record lacks is null.
    :raises OneboxConfigError: if the fields are no list of different names.
    """
    import pyarrow

    rows = list(records)
    names = check_fields(fields) or list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: pyarrow.array([as_text(row.get(name)) for row in rows], pyarrow.string()) for name in names}
    table = pyarrow.table(columns)
    return table.to_pandas() if library == "pandas" else import_module("polars").from_arrow(table)
