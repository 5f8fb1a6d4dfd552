"""Which argument of a write each column of the rows is."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any

from airflow_provider_onebox.exceptions import OneboxConfigError, sanitize

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class ColumnMapping:
    """Renames the columns of rows to the arguments of a write.

    A column is the argument that has its name, in any spelling: ``Full Name``, ``FullName`` and ``full_name`` are one.
    ``Id`` is left out, because Onebox assigns the ids.

    :param write: what writes a row.
    :param columns: the argument of each column that is named otherwise; ``None`` to leave a column out.
    :raises ValueError: if ``write`` has no such argument, or two columns are the same one.
    """

    def __init__(self, write: Callable[..., Any], columns: Mapping[str, str | None] | None = None) -> None:
        self._arguments = [name for name in inspect.signature(write).parameters if name != "self"]
        self._columns = dict(columns or {})
        self._names: dict[str, str | None] = {"id": None, **{_fold(name): name for name in self._arguments}}
        named = [name for name in self._columns.values() if name is not None]
        if not {*named} <= {*self._arguments} or len({*named}) < len(named):
            raise ValueError(
                f"columns={self._columns!r} must name a different argument for each column, or None to leave it out. "
                f"The arguments: {', '.join(self._arguments)}."
            )

    def rename(self, row: Any) -> Any:
        """Rename the columns of a row.

        :param row: the row.
        :return: the arguments; a column that is none keeps its name. The row itself if two columns are one argument.
        """
        if not isinstance(row, dict):
            return row
        named = [(name, value) for column, value in row.items() if (name := self._argument(column)) is not None]
        renamed = dict(named)
        return renamed if len(renamed) == len(named) else row

    def check(self, header: list[str]) -> None:
        """Check the header of a table.

        :param header: the names of its columns.
        :raises OneboxConfigError: if a column is no argument, two are the same one, or a name in ``columns`` is
            missing.
        """
        problems = [f"{sanitize(column, 60)!r} is missing" for column in self._columns if column not in header]
        found: dict[str, str] = {}
        for column in filter(None, header):
            name = self._argument(column)
            if name is None:
                continue
            if name not in self._arguments:
                problems.append(f"{sanitize(column, 60)!r} is no argument")
            elif name in found:
                problems.append(f"{sanitize(found[name], 60)!r} and {sanitize(column, 60)!r} are both {name}")
            found[name] = column
        if problems:
            raise OneboxConfigError(
                f"The columns don't fit, so nothing was sent: {'; '.join(problems)}. Set columns to the argument of "
                f"each, None to leave one out. The arguments: {', '.join(self._arguments)}."
            )

    def _argument(self, column: Any) -> Any:
        return self._columns[column] if column in self._columns else self._names.get(_fold(column), column)


def _fold(name: Any) -> str:
    return re.sub(r"[\W_]", "", str(name)).casefold()
