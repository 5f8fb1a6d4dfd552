"""The fields of a response that hold secrets, such as those of the customer's own channels."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

# Documented are Password and Token of connections, and token and access_token of their sessions; the other two are what
# channels of that kind have.
_SECRET = re.compile("(password|token|secret|apikey)s?$")

_CONTAINERS = frozenset((dict, list))


def remove_secrets(data: Any) -> Any:
    """Remove the fields that hold secrets from a response, however deep they are.

    They are known by their names: ``Password``, ``access_token``, ``appSecret``. A field without a value, or with
    ``true`` or ``false``, stays.

    :param data: the parsed JSON, which is changed.
    :return: the same.
    """
    # Level by level, because the objects of a level have few names between them, and each name is judged once.
    level = [data] if type(data) in _CONTAINERS else []
    while level:
        objects = [item for item in level if type(item) is dict]
        secret = set(filter(_is_secret, set().union(*objects)))
        for item in objects if secret else ():
            for name in secret.intersection(item):
                if item[name] is not None and not isinstance(item[name], bool):
                    del item[name]
        values = (item.values() if type(item) is dict else item for item in level)
        level = [value for some in values for value in some if type(value) in _CONTAINERS]
    return data


@lru_cache(1024)
def _is_secret(name: str) -> bool:
    return bool(_SECRET.search(re.sub(r"[\W_]", "", name.casefold())))
