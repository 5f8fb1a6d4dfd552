"""Keys of Airflow Variables."""

from __future__ import annotations

import hashlib

MAX_KEY = 250


def shorten_key(key: str) -> str:
    """Make a Variable's key fit into Airflow's column.

    :param key: the key, as long as it likes.
    :return: the same, or its beginning and a digest of the whole.
    """
    if len(key) <= MAX_KEY:
        return key
    return f"{key[: MAX_KEY - 33]}.{hashlib.sha256(key.encode()).hexdigest()[:32]}"
