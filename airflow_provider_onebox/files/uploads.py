"""Files that a write sends."""

from __future__ import annotations

import errno
import mimetypes
import os
import posixpath
import re
from typing import TYPE_CHECKING, Any

from airflow_provider_onebox.exceptions import OneboxConfigError, OneboxError, reason_of, sanitize
from airflow_provider_onebox.files.atomic import storage_path

if TYPE_CHECKING:
    from collections.abc import Sequence


MAX_ATTACHMENT_BYTES = 20 * 1024 * 1024
"""The most bytes of files that one call sends; they are in memory, as the call may be sent again."""


_SCHEME = re.compile("[A-Za-z][A-Za-z0-9+.-]*://")

_OF_THE_FILE = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError, ValueError)
_OF_THE_NAME = frozenset({errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL})
"""What is wrong with one file alone; anything else can hit every file. Object storages give no numbers, and NUL and an
unknown scheme are no errors of the operating system."""


class UnreadableFileError(OneboxError):
    """There is no such file, or its name can't be one; nothing was sent."""

    retryable = True


def read_files(paths: Sequence[Any] | str | None) -> list[tuple[str, bytes, str]]:
    """Read files to send, up to :data:`MAX_ATTACHMENT_BYTES` in all.

    :param paths: a path or several, as for ``ObjectStoragePath``.
    :return: name, content and media type of each, as :mod:`requests` takes them.
    :raises OneboxConfigError: if a path is empty, or the files are too large; nothing was sent then.
    :raises UnreadableFileError: if there is no such file; nothing was sent then.
    :raises OneboxError: if a file can't be read for another reason; nothing was sent then.
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
            is_of_the_file = isinstance(error, _OF_THE_FILE) or getattr(error, "errno", None) in _OF_THE_NAME
            raise (UnreadableFileError if is_of_the_file else OneboxError)(
                f"{sanitize(path)} can't be read, so nothing was sent: {reason_of(error)}.", retryable=True
            ) from error
        left -= len(content)
        if left < 0:
            raise OneboxConfigError(
                f"The files to send are larger than {MAX_ATTACHMENT_BYTES:,} bytes in all (at {path}), so nothing was "
                "sent: send fewer or smaller ones."
            )
        media_type = mimetypes.guess_type(path)[0] or "application/octet-stream"
        files.append((path.rpartition("/")[2], content, media_type))
    return files


def resolve_below(root: Any, paths: Sequence[Any] | str) -> list[str]:
    """Resolve files that a row names, and allow only those below a folder.

    :param root: the folder, as for ``ObjectStoragePath``; ``None`` or empty for no files at all.
    :param paths: a path or several.
    :return: the paths, of local files without links and ``..``.
    :raises OneboxConfigError: if a path is not below the folder.
    """
    folder = _resolved(root) if str(root or "").strip() not in ("", "None") else None
    resolved = []
    for path in _as_list(paths):
        place = _resolved(path)
        if folder is None or place is None or not place.startswith(folder.rstrip("/") + "/"):
            where = "attachments_root is not set" if folder is None else f"that is not below attachments_root {root}"
            raise OneboxConfigError(
                f"The row names the file {sanitize(path)!r}, and {where}: nothing was sent. Set attachments_root to "
                "the folder whose files rows may attach."
            )
        resolved.append(place)
    return resolved


def _resolved(path: Any) -> str | None:
    """Return a path without links and ``..``; ``None`` for one that names another storage inside."""
    name = str(path).removeprefix("file://")
    scheme = _SCHEME.match(name)
    if scheme:
        return None if "::" in name else scheme[0] + posixpath.normpath(name[scheme.end() :])
    try:
        return os.path.realpath(name)
    except ValueError:  # NUL: no file has that name.
        return name


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
