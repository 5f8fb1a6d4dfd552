"""JSON as Onebox sends it, and as PHP, gateways and customers break it."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import msgspec

MAX_VALUES = 1_000_000
"""The most values of a body that are parsed. Each takes up to 160 bytes of memory, from two bytes such as ``[]``."""


_FEW_BYTES = 1024 * 1024

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

# A half of a pair that has lost the other, and what Python makes of bytes that are no UTF-8.
_NO_TEXT = re.compile("[\ud800-\udfff]")

_NO_NUMBER = object()

_LITERALS = ("true", "false", "null", "NaN", "Infinity", "-Infinity")

# A text, a number or an escape that has no end.
_BEGUN = re.compile(
    r"""\s*(?:"(?:[^"\\]|\\.)*\\?|-?[0-9]*\.?[0-9]*(?:[eE][-+]?[0-9]*)?|u[0-9a-fA-F]{0,4})""", re.DOTALL
)

_MAX_DIGITS = 4000


class NotJSONError(ValueError):
    """A body is not JSON.

    :param message: what is wrong with it.
    :param is_cut_off: whether it is the beginning of JSON.
    """

    def __init__(self, message: str, *, is_cut_off: bool = False) -> None:
        super().__init__(message)
        self.is_cut_off = is_cut_off


class TooManyValuesError(ValueError):
    """A body has so many values that they would take too much memory."""


def decode(body: bytes, repairs: list[str] | None = None) -> Any:
    """Parse a JSON body. What is broken in single values is repaired: U+FFFD for text, null for numbers.

    :param body: the bytes as they came, with or without a byte order mark.
    :param repairs: gets for each value that was repaired the ``Id`` of its record; an empty text if it has none.
    :return: the parsed value.
    :raises NotJSONError: if it is not JSON.
    :raises TooManyValuesError: if it has more than :data:`MAX_VALUES` values.
    """
    body = body.removeprefix(_BYTE_ORDER_MARK)
    if len(body) > _FEW_BYTES and sum(map(body.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise TooManyValuesError(f"more than {MAX_VALUES:,} values")
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, ValueError):
        # Not a ValueError before msgspec 0.21.
        pass
    except RecursionError:
        raise NotJSONError("JSON is nested too deeply") from None
    return _decode_broken(body, [] if repairs is None else repairs)


def _decode_broken(body: bytes, repairs: list[str]) -> Any:
    text = body.decode("utf-8", "surrogateescape").strip()
    decoder = json.JSONDecoder(parse_constant=lambda _: _NO_NUMBER, parse_float=_float, parse_int=_int)
    try:
        value, end = decoder.raw_decode(text)
        repaired = _repaired(value, "", repairs)
    except json.JSONDecodeError as error:
        rest = text[error.pos :]
        is_cut_off = bool(_BEGUN.fullmatch(rest)) or any(literal.startswith(rest) for literal in _LITERALS)
        raise NotJSONError(error.msg, is_cut_off=is_cut_off) from None
    except RecursionError:
        raise NotJSONError("JSON is nested too deeply") from None
    if end < len(text):
        raise NotJSONError("JSON is followed by something else")
    return repaired


def _float(digits: str) -> Any:
    number = float(digits)
    return number if math.isfinite(number) else _NO_NUMBER


def _int(digits: str) -> Any:
    return int(digits) if len(digits) <= _MAX_DIGITS else _NO_NUMBER


def _repaired(value: Any, place: str, repairs: list[str]) -> Any:
    if value is _NO_NUMBER:
        repairs.append(place)
        return None
    if isinstance(value, str):
        text, count = _NO_TEXT.subn("\ufffd", value)
        if count:
            repairs.append(place)
        return text
    if isinstance(value, list):
        return [_repaired(item, place, repairs) for item in value]
    if isinstance(value, dict):
        number = value.get("Id")
        if isinstance(number, (int, str)):
            place = str(number)
        return {_repaired(name, place, repairs): _repaired(item, place, repairs) for name, item in value.items()}
    return value
