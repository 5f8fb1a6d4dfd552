"""The fields of a response that hold secrets, such as those of the customer's own channels."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

# Documented are Password and Token of connections, and token and access_token of their sessions; the other two are what
# channels of that kind have.
_SECRET = re.compile("(password|token|secret|apikey)s?$")


def remove_secrets(data: Any) -> Any:
    """Remove the fields that hold secrets from a response, however deep they are.

    They are known by their names: ``Password``, ``access_token``, ``appSecret``. A field without a value, or with
    ``true`` or ``false``, stays.

    :param data: the parsed JSON, which is changed.
    :return: the same.
    """
    pending = [data]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            for name in _secret_names(tuple(item)):
                if item[name] is not None and not isinstance(item[name], bool):
                    del item[name]
            item = item.values()
        elif not isinstance(item, list):
            continue
        pending += [value for value in item if type(value) in (dict, list)]
    return data


# The records of a resource have the same fields, and there can be millions.
@lru_cache(1024)
def _secret_names(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if _SECRET.search(re.sub(r"[\W_]", "", name.casefold()))]
