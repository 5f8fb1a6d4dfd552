"""Fields of records as columns of Arrow, of text or of the types that the user names."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from airflow_provider_onebox.exceptions import OneboxConfigError, sanitize

if TYPE_CHECKING:
    from collections.abc import Sequence
    from zoneinfo import ZoneInfo

TYPES = ("string", "int64", "float64", "bool", "timestamp", "timestamptz")
"""The types that a column can have: ``timestamp`` is a time as Onebox writes it, ``timestamptz`` an instant in UTC."""


log = logging.getLogger(__name__)


def check_fields(fields: Any, *, can_have_types: bool = False) -> dict[str, str | None] | None:
    """Check that the names of fields can be columns.

    :param fields: the names, or a dictionary of names and types, or ``None`` for all fields.
    :param can_have_types: whether what is written can have types.
    :return: the type of each field, ``None`` for one that has none.
    :raises OneboxConfigError: if it is not a list of different names, or a type can't be used.
    """
    if fields is None:
        return None
    names = list(fields) if isinstance(fields, Iterable) and not isinstance(fields, str) else []
    if not names or not all(isinstance(name, str) and name.strip() for name in names) or len({*names}) < len(names):
        raise OneboxConfigError(
            f"fields={sanitize(fields, 60)!r} is not a list of different names: pass, for example, ['Id', 'Subject']. "
            "A template that makes the whole list needs render_template_as_native_obj."
        )
    if not isinstance(fields, Mapping):
        return dict.fromkeys(names)
    if not can_have_types:
        raise OneboxConfigError(
            f"fields={sanitize(dict(fields), 60)!r} has types, and only Parquet files and frames do: pass a list of "
            "names, or name a .parquet file in output_path."
        )
    for name, kind in fields.items():
        if kind not in TYPES:
            raise OneboxConfigError(
                f"fields: {sanitize(name, 60)} has the type {sanitize(kind, 60)!r}: use one of {', '.join(TYPES)}."
            )
    return dict(fields)


def needs_zone(fields: Any) -> bool:
    """Return whether Onebox's own zone has to be known for the types of fields.

    :param fields: the names, with or without types.
    :return: whether one is a ``timestamptz``.
    """
    return isinstance(fields, Mapping) and "timestamptz" in fields.values()


def as_text(value: Any) -> str | None:
    """Write a value as the text that a column of text holds.

    :param value: a value of a record.
    :return: text as it is, ``None`` for null, and JSON for anything else.
    """
    return value if value is None or isinstance(value, str) else msgspec.json.encode(value).decode()


class Columns:
    """Makes columns of records.

    :param types: the type of each column; text where it is ``None``.
    :param zone: Onebox's own zone, needed for ``timestamptz``.
    :param on_misfit: what happens to a value that is not of its column's type: ``"fail"``, or ``"null"`` to write null
        and count it.
    :raises OneboxConfigError: if ``on_misfit`` is neither, or pyarrow does not know the zone.
    """

    def __init__(self, types: Mapping[str, str | None], zone: ZoneInfo | None = None, on_misfit: str = "fail") -> None:
        import pyarrow

        if on_misfit not in ("fail", "null"):
            raise OneboxConfigError(f'on_misfit={sanitize(on_misfit, 60)!r} is neither "fail" nor "null".')
        self._arrow = pyarrow
        self._types = types
        self._zone = zone.key if zone else None
        self._is_strict = on_misfit == "fail"
        # Field -> how many values did not fit, and the id of the first one's record.
        self._misfits: dict[str, tuple[int, Any]] = {}
        self._arrow_types: dict[str | None, Any] = {
            "int64": pyarrow.int64(),
            "float64": pyarrow.float64(),
            "bool": pyarrow.bool_(),
            "timestamp": pyarrow.timestamp("us"),
            "timestamptz": pyarrow.timestamp("us", "UTC"),
        }
        text = pyarrow.string()
        self.schema = pyarrow.schema([(name, self._arrow_types.get(kind, text)) for name, kind in types.items()])
        if zone:
            try:
                self._convert(pyarrow.array(["2026-01-01"]), "timestamptz")
            except pyarrow.ArrowInvalid:
                raise OneboxConfigError(
                    f"pyarrow does not find the time zone {zone.key}, which timestamptz needs: install the worker's "
                    "time zones, as the package tzdata of its operating system."
                ) from None

    @property
    def names(self) -> Iterable[str]:
        """The names of the columns."""
        return self._types

    def batch(self, rows: Sequence[dict[str, Any]]) -> Any:
        """Make a batch of records.

        :param rows: the records; fields that are no columns are left out.
        :return: a record batch.
        :raises OneboxConfigError: if a value is not of its column's type, and that is to fail.
        """
        arrays = []
        for name, kind in self._types.items():
            texts = self._texts([row.get(name) for row in rows])
            arrays.append(self._cast(texts, name, kind, rows, 0) if kind not in (None, "string") else texts)
        return self._arrow.RecordBatch.from_arrays(arrays, schema=self.schema)

    def _texts(self, values: list[Any]) -> Any:
        try:
            return self._arrow.array(values, self._arrow.string())
        except self._arrow.ArrowTypeError:  # Numbers, lists and the like.
            return self._arrow.array([as_text(value) for value in values], self._arrow.string())

    def _cast(self, texts: Any, name: str, kind: str, rows: Sequence[dict[str, Any]], begin: int) -> Any:
        try:
            return self._convert(texts, kind)
        except self._arrow.ArrowInvalid:
            if len(texts) > 1:
                middle = len(texts) // 2
                halves = (texts[:middle], begin), (texts[middle:], begin + middle)
                return self._arrow.concat_arrays([self._cast(half, name, kind, rows, at) for half, at in halves])
        # Not the value: it can be a customer's.
        row_id = sanitize(rows[begin].get("Id"))
        if self._is_strict:
            raise OneboxConfigError(
                f"The record with Id {row_id} has a {sanitize(name, 60)} that is not of the type {kind}: correct the "
                'type in fields, or write null for such values with on_misfit="null".'
            )
        count, first = self._misfits.get(name, (0, row_id))
        self._misfits[name] = count + 1, first
        return self._arrow.nulls(1, self.schema.field(name).type)

    def _convert(self, texts: Any, kind: str) -> Any:
        if kind != "timestamptz":
            return texts.cast(self._arrow_types[kind])
        from pyarrow import compute

        local = texts.cast(self._arrow_types["timestamp"])
        instants = compute.assume_timezone(local, self._zone, ambiguous="earliest", nonexistent="latest")
        return instants.cast(self._arrow_types[kind])

    def report(self) -> None:
        """Log how many values did not fit."""
        for name, (count, first) in self._misfits.items():
            log.warning(
                "Wrote null for %s values of %s that are not of the type %s; the first is in the record with Id %s.",
                f"{count:,}",
                sanitize(name, 60),
                self._types[name],
                first,
            )
