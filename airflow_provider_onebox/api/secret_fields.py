"""The fields of a response that hold secrets, such as those of the customer's own channels."""

from __future__ import annotations

import re
import sys
from functools import lru_cache
from typing import Any

# Documented are Password and Token of connections, and token and access_token of their sessions; the other two are what
# channels of that kind have.
_SECRET = re.compile("(password|token|secret|apikey)s?$")

_CONTAINERS = frozenset((dict, list))


def without_secrets(data: Any, objects: int = sys.maxsize) -> Any:
    """Leave out the fields of a response that hold secrets, however deep they are.

    They are known by their names: ``Password``, ``access_token``, ``appSecret``. A field without a value, or with
    ``true`` or ``false``, stays.

    :param data: the parsed JSON; it is not changed.
    :param objects: the most objects that it can have; the search ends when so many are found.
    :return: the data itself if it holds no secret, otherwise a copy without them.
    """
    # Level by level, because the objects of a level have few names between them, and each name is judged once.
    level = [data] if type(data) in _CONTAINERS else []
    while level:
        found = [item for item in level if type(item) is dict]
        secret = set(filter(_is_secret, set().union(*found)))
        if secret and any(_is_value(item[name]) for item in found for name in secret.intersection(item)):
            return _copy_without_secrets(data)
        objects -= len(found)
        if objects <= 0:
            break
        level = [
            value
            for item in level
            for value in (item.values() if type(item) is dict else item)
            if type(value) in _CONTAINERS
        ]
    return data


def _copy_without_secrets(data: Any) -> Any:
    result = [data]
    pending: list[Any] = [result]
    while pending:
        copy = pending.pop()
        for key, value in list(copy.items() if isinstance(copy, dict) else enumerate(copy)):
            if type(value) is dict:
                copy[key] = {name: item for name, item in value.items() if not (_is_value(item) and _is_secret(name))}
            elif type(value) is list:
                copy[key] = value.copy()
            else:
                continue
            pending.append(copy[key])
    return result[0]


def _is_value(value: Any) -> bool:
    return value is not None and not isinstance(value, bool)


@lru_cache(1024)
def _is_secret(name: str) -> bool:
    return bool(_SECRET.search(re.sub(r"[\W_]", "", name.casefold())))
