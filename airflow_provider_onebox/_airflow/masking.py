"""What Airflow masks in its logs for this provider: the connection's secrets, and tokens that the hook returns."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from typing import TYPE_CHECKING

from airflow_provider_onebox._airflow.compat import SUPERVISOR_IS_THREAD_SAFE, secret_masker
from airflow_provider_onebox.api.redaction import forms_of

if TYPE_CHECKING:
    from collections.abc import Iterable


MIN_MASKED = 5
"""Characters of the shortest secret that Airflow masks in logs."""


MAX_MASKED_TOKENS = 50
"""Tokens that one process masks; each makes Airflow's masker slower, and none can be removed from it."""


log = logging.getLogger(__name__)


# Masked in this process; and not yet masked, here or in its supervisor.
_masked: set[str] = set()


_unmasked: set[str] = set()


_masked_tokens = 0


def mask(secrets: Iterable[str]) -> None:
    """Have Airflow replace secrets in this process's logs from now on, in each form in which they can be printed.

    :param secrets: the secrets as they were entered.
    """
    # Airflow 3 skips shorter ones by itself; Airflow 2 would mask such short text everywhere in every log.
    forms = {form for secret in secrets for form in forms_of(secret) if len(form) >= MIN_MASKED}
    _unmasked.update(forms - _masked)
    _update_masker()


def mask_token(token: str) -> None:
    """Have Airflow replace a token that the hook returns or was given, up to :data:`MAX_MASKED_TOKENS` of them.

    :param token: the token.
    """
    global _masked_tokens
    if token in _masked or token in _unmasked:
        _update_masker()
        return
    _masked_tokens += 1
    if _masked_tokens <= MAX_MASKED_TOKENS:
        _unmasked.add(token)
    elif _masked_tokens == MAX_MASKED_TOKENS + 1:
        log.warning(
            "This process has returned %d tokens. Further tokens are not masked in its logs, because each makes all "
            "logging slower. To make calls, use the hook's request() or get_conn(), which return none.",
            MAX_MASKED_TOKENS,
        )
    _update_masker()


def _update_masker() -> None:
    if not _unmasked:
        return
    local_only = _must_leave_supervisor_alone()
    new = _unmasked - _masked if local_only else set(_unmasked)
    mask_secret = secret_masker(local_only)
    for secret in new:
        mask_secret(secret)
    _masked.update(new)
    if not local_only:
        _unmasked.difference_update(new)


def _must_leave_supervisor_alone() -> bool:
    """Return whether a call to the supervisor could block or go wrong here; a later call of this module repeats it."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return not (SUPERVISOR_IS_THREAD_SAFE or threading.current_thread() is threading.main_thread())
    return True


# A forked child has another supervisor.
os.register_at_fork(after_in_child=_masked.clear)
