"""Keys of Airflow Variables."""

from __future__ import annotations

import hashlib

MAX_KEY = 250


def shorten_key(key: str) -> str:
    """Shorten the key of a Variable to what Airflow can store.

    :param key: the key, of any length.
    :return: the key; if it is too long, its beginning and a digest of the whole.
    """
    if len(key) <= MAX_KEY:
        return key
    return f"{key[: MAX_KEY - 33]}.{hashlib.sha256(key.encode()).hexdigest()[:32]}"
