"""A claim on a path, so that no two task instances write it at once."""

from __future__ import annotations

import hashlib
import logging
import secrets
from contextlib import suppress
from typing import Any

import msgspec

from airflow_provider_onebox._airflow.compat import count_instances
from airflow_provider_onebox.exceptions import OneboxConfigError, OneboxError

log = logging.getLogger(__name__)

RUNNING = ("running", "restarting")
"""States of a task instance that may be writing."""


class Owner(msgspec.Struct, frozen=True, array_like=True):
    """A task instance.

    :param dag_id: its DAG.
    :param task_id: its task.
    :param run_id: its DAG run.
    :param map_index: its map index, -1 if it is not mapped.
    """

    dag_id: str
    task_id: str
    run_id: str
    map_index: int


class _Content(msgspec.Struct):
    owner: Owner
    process: str


class Claim:
    """A small hidden file beside the target that names who writes it; the same on a disk and in an object store.

    A claim by another task instance is respected while Airflow says that the instance runs. Two that claim in the same
    moment both find no claim; the later one overwrites the earlier one's, which notices before it publishes. No store
    needs more for this than that a read sees the latest write.

    An instance of a mapped task leaves its claim when it succeeds, so that a sibling with the same path that only
    starts then does not replace its file. All others remove theirs.

    :param fs: the target's file system.
    :param path: the target, as its file system names it.
    :param name: the target, for messages.
    :param ti: the task instance that writes.
    """

    def __init__(self, fs: Any, path: str, name: str, ti: Any) -> None:
        folder, _, file = path.rpartition("/")
        self._fs = fs
        self._path = f"{folder}/.{file[:40]}.{hashlib.blake2b(path.encode(), digest_size=4).hexdigest()}.claim"
        self._name = name
        self._ti = ti
        self._content = _Content(Owner(ti.dag_id, ti.task_id, ti.run_id, ti.map_index), secrets.token_hex(8))
        self._is_published = False

    def take(self) -> None:
        """Claim the path.

        :raises OneboxConfigError: if another task instance of the same run writes it, or, mapped, has written it.
        :raises OneboxError: if a task of another run writes it.
        """
        found = self._read()
        if found and found.owner != self._content.owner and self._is_respected(found.owner):
            self._refuse(found.owner)
        self._fs.pipe_file(self._path, msgspec.json.encode(self._content))

    def check(self, *, publishes: bool = True) -> None:
        """Check that no other task instance has claimed the path since; call this right before publishing or removing.

        :param publishes: whether the path has a file afterwards.
        :raises OneboxConfigError: if another task instance of the same run has.
        :raises OneboxError: if a task of another run has.
        """
        found = self._read()
        if not found or found.owner != self._content.owner:
            self._refuse(found.owner if found else None)
        self._is_published = publishes

    def release(self) -> None:
        """Remove the claim if it is still this process's own, unless siblings have to see it."""
        if self._is_published and self._content.owner.map_index >= 0:
            return
        try:
            if self._read() == self._content:
                self._fs.rm_file(self._path)
        except Exception:  # noqa: BLE001 - stores have different errors, and an old claim does no harm
            log.info("The claim %s could not be removed; the next task that writes the path replaces it.", self._path)

    def _read(self) -> _Content | None:
        # A listing that the file system has kept may be older than the claim.
        self._fs.invalidate_cache()
        with suppress(FileNotFoundError, msgspec.MsgspecError):
            return msgspec.json.decode(self._fs.cat_file(self._path), type=_Content)
        return None

    def _is_respected(self, owner: Owner) -> bool:
        ours = self._content.owner
        is_sibling = (owner.dag_id, owner.task_id, owner.run_id) == (ours.dag_id, ours.task_id, ours.run_id)
        states = (*RUNNING, "success") if is_sibling else RUNNING
        return count_instances(self._ti, states, **msgspec.structs.asdict(owner)) > 0

    def _refuse(self, owner: Owner | None) -> None:
        ours = self._content.owner
        is_same_run = owner is not None and (owner.dag_id, owner.run_id) == (ours.dag_id, ours.run_id)
        who = f"task {owner.task_id!r}, map index {owner.map_index}, of {owner.dag_id!r}" if owner else "another task"
        message = (
            f"{self._name} is also written by {who}; it was not replaced. Give each task and each mapped instance "
            "another path, for example with {{ ti.map_index }} and {{ run_id }}."
        )
        if is_same_run:
            raise OneboxConfigError(message)
        raise OneboxError(message, retryable=True)
