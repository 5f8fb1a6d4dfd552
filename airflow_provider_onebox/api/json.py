"""JSON as Onebox sends it."""

from __future__ import annotations

from typing import Any

import msgspec

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def decode(body: bytes) -> Any:
    """Parse a JSON body.

    :param body: the bytes as they came; a byte order mark is survived.
    :return: the parsed value.
    :raises ValueError: if it is not JSON.
    """
    try:
        return msgspec.json.decode(body.removeprefix(_BYTE_ORDER_MARK))
    except msgspec.DecodeError as error:
        # A ValueError from msgspec 0.21 on alone; Airflow 3.0 and 3.1 were released with older ones.
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None
