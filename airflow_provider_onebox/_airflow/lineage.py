"""Reports what tasks read and write to Airflow's hook lineage collector, where OpenLineage reads it.

Where no plugin reads the collector, Airflow replaces it by one that does nothing.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from airflow_provider_onebox.exceptions import sanitize

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    from airflow_provider_onebox.api.settings import Settings


log = logging.getLogger(__name__)


# common.compat completes the collector of older Airflows at each call, which is not safe in several threads. Reentrant,
# because an abandoned listing reports when the garbage collector finds it, which can be in the middle of this.
_lock = threading.RLock()


def report_listing(hook: object, settings: Settings, resource: str, count: int | None = None) -> None:
    """Report that records were listed, as an input of the task.

    :param hook: the hook that listed them.
    :param settings: its connection, with the site.
    :param resource: the resource.
    :param count: how many records; ``None`` to count all its reports as one.
    """
    uri = f"onebox://{urlsplit(settings.base_url).netloc}/{settings.site_id}/{resource}"
    _report("add_input_asset", hook, uri, count)


def plain_uri(path: ObjectStoragePath) -> str:
    """Return the URI of a file without a connection in it, as readers outside of Airflow take it.

    :param path: the file.
    :return: such as ``s3://bucket/key``; of a local file, ``file://`` and the whole path.
    """
    if path.protocol in ("", "file"):
        return f"file://{os.path.abspath(path.path)}"  # noqa: PTH100
    return re.sub(r"^([^/]*://)[^/@]*@", r"\1", str(path))


def report_file(path: ObjectStoragePath, *, is_output: bool, count: int | None = None) -> None:
    """Report a file that was written or read.

    :param path: the file.
    :param is_output: whether it was written.
    :param count: its rows, if known.
    """
    _report("add_output_asset" if is_output else "add_input_asset", path, plain_uri(path), count)


def _report(method: str, context: object, uri: str, count: int | None) -> None:
    try:
        from airflow.providers.common.compat.lineage.hook import get_hook_lineage_collector

        with _lock:
            add = getattr(get_hook_lineage_collector(), method)
            add(context=context, uri=uri, asset_extra=None if count is None else {"count": count})
    except Exception as error:  # noqa: BLE001 - the task is done, and lineage must not fail it
        log.warning("%s is missing from the lineage: %s.", uri, sanitize(error))


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)
