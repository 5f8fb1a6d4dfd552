"""The journal of a single write: an entry that outlives the process, so that Airflow's retries never write twice.

The entry is stored before the write is sent, and updated with the result. A later try finds it:

- without a result, the write may have been made: the try fails at once;
- with a result, the try returns that result and sends nothing.

A person who clears the task wants the write made anew. Airflow raises ``max_tries`` for a clear and not for its own
retries, so an entry with another ``max_tries`` does not count.

On Airflow 3.3 and later, the entry is in the task's state store. Before that it is a Variable, which is removed once
the task's success is recorded: on Airflow 3 by the task's callback, on Airflow 2, which calls back before it records
the success, by the task's next write.
Neither store has compare-and-set, which leaves one case open: a process that Airflow has superseded, and
suspended between reading and writing the entry.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
from airflow.providers.common.compat.sdk import Variable

from airflow_provider_onebox._airflow.compat import AIRFLOW_3, remove_variables_of_succeeded
from airflow_provider_onebox._airflow.variables import shorten_key
from airflow_provider_onebox.exceptions import (
    OneboxConfigError,
    OneboxError,
    OneboxUncertainWriteError,
    OneboxUnusableResultError,
    sanitize,
)
from airflow_provider_onebox.writes import BEGUN, CUT_OFF, DONE

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = "onebox_write"
"""The entry's key in the task's state store, and the beginning of the Variable's."""

MAX_KEPT_BYTES = 4096
"""The most bytes of JSON that an entry keeps of a result."""

log = logging.getLogger(__name__)

# The Variables that this process uses, to be removed once their tasks have succeeded.
_variables: set[str] = set()


class Entry(msgspec.Struct, omit_defaults=True):
    """What is known of a task's write.

    :param call: method and endpoint.
    :param try_number: the task try that sent it.
    :param max_tries: the task's ``max_tries`` at that time.
    :param result: ``begun`` or ``done``.
    :param value: what the task returned; unset if that is too large or secret.
    """

    call: str
    try_number: int
    max_tries: int
    result: str = BEGUN
    value: Any = msgspec.UNSET


class Journal:
    """The journal of a task instance's write.

    :param context: the task's context.
    """

    def __init__(self, context: Any) -> None:
        self._ti = context["ti"]
        store = context.get("task_state_store")
        self._store = _Variable(self._ti) if store is None else _StateStore(store)
        # On Airflow 3.4, a retry policy can run a task again without a new try.
        policy = getattr(context.get("task"), "retry_policy", None)
        self._is_first = self._ti.try_number <= 1 and policy is None
        self._entry: Entry | None = None

    def earlier(self) -> Entry | None:
        """Find the write of an earlier try.

        :return: the entry of a write that was made; ``None`` if this try has to make it.
        :raises OneboxUncertainWriteError: if an earlier try may have made it.
        :raises OneboxUnusableResultError: if an earlier try made it, and its result was not kept.
        :raises OneboxConfigError: if the entry is none of this provider's.
        :raises OneboxError: if the journal can't be read.
        """
        if self._is_first:
            return None
        try:
            text = self._store.get()
        except Exception as error:
            raise self._error("read", error) from error
        if text is None:
            return None
        try:
            entry = msgspec.json.decode(str(text), type=Entry)
        except msgspec.MsgspecError:
            raise OneboxConfigError(
                f"The journal entry {self._store.name} is {sanitize(text, 60)!r}, which this provider did not write: "
                "nothing was sent. Remove it."
            ) from None
        if entry.max_tries != self._ti.max_tries:
            return None
        if entry.result != DONE:
            raise OneboxUncertainWriteError(
                f"{entry.call}: try {entry.try_number} of this task {CUT_OFF}. {OneboxUncertainWriteError.remedy}, "
                "which makes the write anew."
            )
        if entry.value is msgspec.UNSET:
            raise OneboxUnusableResultError(
                f"{entry.call}: try {entry.try_number} of this task made this write, and its result was not kept, "
                f"because it is secret or larger than {MAX_KEPT_BYTES:,} bytes. Nothing was sent again.",
                uncertain=True,
            )
        log.info("%s: try %s of this task made this write; returning its result.", entry.call, entry.try_number)
        return entry

    def begin(self, call: str) -> None:
        """Note that a write is about to be sent.

        :param call: method and endpoint.
        :raises OneboxError: if it can't be noted.
        """
        entry = Entry(call, self._ti.try_number, self._ti.max_tries)
        try:
            self._store.set(msgspec.json.encode(entry).decode())
        except Exception as error:
            raise self._error("written", error) from error
        self._entry = entry

    def finish(self, value: Any = msgspec.UNSET) -> None:
        """Note that the write was made.

        :param value: what the task returns, if that may be kept.
        """
        if self._entry is None:
            return
        entry = msgspec.structs.replace(self._entry, result=DONE)
        # Keys that are no text, or half an emoji: no JSON.
        with suppress(TypeError, ValueError):
            if len(msgspec.json.encode(value)) <= MAX_KEPT_BYTES:
                entry.value = value
        try:
            self._store.set(msgspec.json.encode(entry).decode())
        except Exception as error:  # noqa: BLE001 - the write was made
            log.warning(
                "The result of this write can't be noted in the journal (%s): should this task be retried, it fails as "
                "uncertain.",
                type(error).__name__,
            )
        if not AIRFLOW_3:
            self._remove_succeeded()

    def forget(self) -> None:
        """Remove the entry of a write that was not made."""
        if self._entry is None:
            return
        try:
            self._store.delete()
        except Exception as error:  # noqa: BLE001 - the task raises another error
            log.warning(
                "The entry of a write that was not made can't be removed from the journal (%s): should this task be "
                "retried, it fails as uncertain.",
                type(error).__name__,
            )

    def _remove_succeeded(self) -> None:
        ti = self._ti
        try:
            remove_variables_of_succeeded(ti, f"{KEY}@{ti.dag_id}@{ti.task_id}@", lambda one: _Variable(one).key)
        except Exception as error:  # noqa: BLE001 - the write was made, and the next one tries again
            log.warning("Journal entries of tasks that succeeded can't be removed (%s).", type(error).__name__)

    def _error(self, what: str, error: Exception) -> OneboxError:
        # The message of a secrets backend can hold parts of a secret.
        return OneboxError(
            f"The journal entry {self._store.name} can't be {what} ({type(error).__name__}): nothing was sent. A retry "
            "can help; journal=False makes the write without a journal.",
            retryable=True,
        )


def write_once(context: Any, hook: Any, write: Callable[[], Any], *, keep_result: bool) -> Any:
    """Make a task's write, unless an earlier try of the task has made it or may have.

    :param context: the task's context.
    :param hook: the hook that ``write`` uses.
    :param write: makes the write and returns what the task returns.
    :param keep_result: whether the journal may hold that.
    :return: what ``write`` returns, in this try or in the earlier one.
    :raises OneboxUncertainWriteError: if an earlier try may have made the write.
    :raises OneboxError: if the journal can't be used, or the write fails.
    """
    journal = Journal(context)
    earlier = journal.earlier()
    if earlier is not None:
        return earlier.value
    hook.before_send = journal.begin
    try:
        result = write()
    except OneboxError as error:
        if not error.uncertain:
            journal.forget()
        raise
    finally:
        hook.before_send = None
    journal.finish(result if keep_result else msgspec.UNSET)
    return result


def forget_write(context: Any) -> None:
    """Remove the Variable of a task that succeeded, as its callback: Airflow 3 has recorded the success then.

    :param context: the task's context.
    """
    if not AIRFLOW_3:  # It could still be killed before the success is recorded, and be retried.
        return
    variable = _Variable(context["ti"])
    if variable.key in _variables:
        _variables.discard(variable.key)
        variable.delete()


class _StateStore:
    """The task's own store, from Airflow 3.3 on: kept by run, task and map index, and removed with the run."""

    name = repr(KEY)

    def __init__(self, store: Any) -> None:
        self._store = store

    def get(self) -> Any:
        return self._store.get(KEY)

    def set(self, text: str) -> None:
        from airflow.sdk.execution_time.context import NEVER_EXPIRE

        self._store.set(KEY, text, retention=NEVER_EXPIRE)

    def delete(self) -> None:
        self._store.delete(KEY)


class _Variable:
    """A Variable for each task instance."""

    def __init__(self, ti: Any) -> None:
        index = [str(ti.map_index)] if ti.map_index is not None and ti.map_index >= 0 else []
        self.key = shorten_key("@".join((KEY, ti.dag_id, ti.task_id, ti.run_id, *index)))
        self.name = f"in the Variable {self.key!r}"

    def get(self) -> Any:
        text = Variable.get(self.key, None)
        if text is not None:
            _variables.add(self.key)
        return text

    def set(self, text: str) -> None:
        Variable.set(self.key, text)
        # Airflow 3.0 and 3.1 log that a Variable was not set, and raise nothing.
        if self.get() != text:
            raise RuntimeError("the Variable was not set")

    def delete(self) -> None:
        _variables.discard(self.key)
        Variable.delete(self.key)
