"""Files that a write sends."""

from __future__ import annotations

import mimetypes
from typing import TYPE_CHECKING, Any

from airflow_provider_onebox.exceptions import OneboxConfigError, OneboxError, reason_of
from airflow_provider_onebox.files.atomic import storage_path

if TYPE_CHECKING:
    from collections.abc import Sequence


MAX_ATTACHMENT_BYTES = 20 * 1024 * 1024
"""The most bytes of files that one call sends; they are in memory, as the call may be sent again."""


def read_files(paths: Sequence[Any] | str | None) -> list[tuple[str, bytes, str]]:
    """Read files to send, up to :data:`MAX_ATTACHMENT_BYTES` in all.

    :param paths: a path or several, as for ``ObjectStoragePath``.
    :return: name, content and media type of each, as :mod:`requests` takes them.
    :raises OneboxConfigError: if a path is empty, or the files are too large; nothing was sent then.
    :raises OneboxError: if a file can't be read; nothing was sent then.
    """
    files = []
    left = MAX_ATTACHMENT_BYTES
    for path in map(str, _as_list(paths)):
        if path.strip() in ("", "None"):
            raise OneboxConfigError("A path of a file to send is empty: the template found nothing.")
        try:
            with storage_path(path).open("rb") as file:
                content = file.read(left + 1)
        except Exception as error:
            problem = reason_of(error)
            raise OneboxError(f"{path} can't be read, so nothing was sent: {problem}.", retryable=True) from error
        left -= len(content)
        if left < 0:
            raise OneboxConfigError(
                f"The files to send are larger than {MAX_ATTACHMENT_BYTES:,} bytes in all (at {path}), so nothing was "
                "sent: send fewer or smaller ones."
            )
        media_type = mimetypes.guess_type(path)[0] or "application/octet-stream"
        files.append((path.rpartition("/")[2], content, media_type))
    return files


def read_ticket_files(
    attachment: Sequence[Any] | str | None, file: Sequence[Any] | str | None
) -> list[tuple[str, tuple[str, bytes, str]]]:
    """Read the files of a ticket, up to :data:`MAX_ATTACHMENT_BYTES` in all.

    :param attachment: paths for the field ``attachment``.
    :param file: paths for the field ``file``.
    :return: fields and files, as :mod:`requests` takes them.
    :raises OneboxConfigError: if a path is empty, or the files are too large; nothing was sent then.
    :raises OneboxError: if a file can't be read; nothing was sent then.
    """
    first, second = _as_list(attachment), _as_list(file)
    names = ["attachment"] * len(first) + ["file"] * len(second)
    return list(zip(names, read_files([*first, *second]), strict=True))


def _as_list(paths: Sequence[Any] | str | None) -> list[Any]:
    return list(paths) if isinstance(paths, (list, tuple)) else [paths] if paths else []
