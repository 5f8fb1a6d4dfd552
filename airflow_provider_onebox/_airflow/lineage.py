"""What tasks read and write, told to Airflow's collector of hook lineage; OpenLineage reads it there.

Where no plugin reads the collector, Airflow puts one in its place that does nothing.
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


# common.compat completes the collector of older Airflows at each call, which is not for several threads. Reentrant,
# because a listing that is given up reports when the garbage collector finds it, which may be in the middle of this.
_lock = threading.RLock()


def report_listing(hook: object, settings: Settings, resource: str, count: int | None = None) -> None:
    """Report that records were listed, as an input of the task.

    :param hook: what has listed them.
    :param settings: its connection, with the site.
    :param resource: what they are.
    :param count: how many; ``None`` to count all reports of it as one.
    """
    uri = f"onebox://{urlsplit(settings.base_url).netloc}/{settings.site_id}/{resource}"
    _report("add_input_asset", hook, uri, count)


def report_file(path: ObjectStoragePath, *, is_output: bool, count: int | None = None) -> None:
    """Report a file that was written or read, under the URI that others report, too: without a connection in it.

    :param path: the file.
    :param is_output: whether it was written.
    :param count: its rows, if known.
    """
    uri = re.sub(r"^([^/]*://)[^/@]*@", r"\1", str(path))
    if path.protocol in ("", "file"):
        uri = f"file://{os.path.abspath(path.path)}"  # noqa: PTH100
    _report("add_output_asset" if is_output else "add_input_asset", path, uri, count)


def _report(method: str, context: object, uri: str, count: int | None) -> None:
    try:
        from airflow.providers.common.compat.lineage.hook import get_hook_lineage_collector

        with _lock:
            add = getattr(get_hook_lineage_collector(), method)
            add(context=context, uri=uri, asset_extra=None if count is None else {"count": count})
    except Exception as error:  # noqa: BLE001 - what is done is done, whatever Airflow and its plugins make of it
        log.warning("%s is missing from the lineage: %s.", uri, sanitize(error))


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)
