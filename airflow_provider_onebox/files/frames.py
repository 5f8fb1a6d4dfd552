"""Records as a data frame, through Arrow."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from airflow_provider_onebox.exceptions import OneboxConfigError
from airflow_provider_onebox.files.columns import Columns

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from zoneinfo import ZoneInfo

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


def frame_of(
    records: Iterable[dict[str, Any]],
    library: str,
    fields: Mapping[str, str | None] | None = None,
    zone: ZoneInfo | None = None,
    on_misfit: str = "fail",
) -> Any:
    """Make a frame of records.

    :param records: the records.
    :param library: one of :data:`FRAMES`.
    :param fields: the columns, in this order, and their types, text where it is ``None``; all fields that a record
        has, as they first come, if ``None``.
    :param zone: Onebox's own zone, as for :class:`.columns.Columns`.
    :param on_misfit: what happens to a value that is not of its column's type, as for :class:`.columns.Columns`.
    :return: the frame; what a record lacks is null.
    :raises OneboxConfigError: if a value is not of its column's type, and that is to fail.
    """
    import pyarrow

    columns = Columns(fields or {}, zone, on_misfit)
    rows = list(records)
    if fields is None:
        columns = Columns(dict.fromkeys(name for row in rows for name in row))
    table = pyarrow.Table.from_batches([columns.batch(rows)])
    columns.report()
    if library == "polars":
        return import_module("polars").from_arrow(table)
    pandas = import_module("pandas")
    # Otherwise null makes a column of numbers one of floats, which large ids do not survive.
    nullable = {pyarrow.int64(): pandas.Int64Dtype(), pyarrow.bool_(): pandas.BooleanDtype()}
    return table.to_pandas(types_mapper=nullable.get)
