"""The forms in which a secret can be printed, and how they are removed from messages."""

from __future__ import annotations

import html
import json
import re
from base64 import b64encode
from html.entities import codepoint2name
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MIN_INSIDE_BASE64 = 6
"""Characters of the shortest base64 text that is searched for within a longer one; shorter ones occur by chance."""


_NAMED = {code: f"&{name};" for code, name in codepoint2name.items()} | {ord("'"): "&#039;"}


def _lower_case(text: str) -> str:
    return re.sub("%[0-9A-F]{2}", lambda code: code[0].lower(), text)


def _php_url(text: str) -> str:
    return quote_plus(text).replace("~", "%7E")


def _json(text: str) -> str:
    return json.dumps(text)[1:-1]


def _php_json(text: str) -> str:
    return _json(text).replace("/", "\\/")


def _php_html(text: str) -> str:
    return html.escape(text, quote=False).replace('"', "&quot;").replace("'", "&#039;")


def _named_entities(text: str) -> str:
    return text.translate(_NAMED)


_ENCODERS: tuple[Callable[[str], str], ...] = (
    str,
    # A URL and a form: Python, PHP's urlencode, and rawurlencode. Some servers write the codes in lower case.
    quote_plus,
    quote,
    lambda text: quote(text, safe=""),
    _php_url,
    lambda text: _lower_case(quote(text, safe="")),
    lambda text: _lower_case(_php_url(text)),
    # JSON: with and without escapes for other letters, and PHP's json_encode, as it is and with JSON_HEX_*.
    _json,
    lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    _php_json,
    lambda text: json.dumps(text, ensure_ascii=False)[1:-1].replace("/", "\\/"),
    lambda text: re.sub("[<>&']", lambda c: f"\\u{ord(c[0]):04X}", _php_json(text).replace('\\"', "\\u0022")),
    # HTML: htmlspecialchars of PHP 8.1, of HTML 5 and of older PHP; htmlentities; numeric entities; Python.
    _php_html,
    lambda text: _php_html(text).replace("&#039;", "&apos;"),
    lambda text: _php_html(text).replace("&#039;", "'"),
    _named_entities,
    lambda text: _php_html(text).encode("ascii", "xmlcharrefreplace").decode(),
    html.escape,
    # Encoded twice, as a page does that shows what it was sent.
    lambda text: quote(quote(text, safe=""), safe=""),
    lambda text: quote(_php_url(text), safe=""),
    lambda text: _php_html(_php_html(text)),
    lambda text: _php_html(_php_json(text)),
    lambda text: _json(_json(text)),
    # Source code: PHP's addslashes, and Python.
    lambda text: re.sub(r"""(['"\\])""", r"\\\1", text),
    lambda text: repr(text)[1:-1],
    lambda text: repr(text.encode())[2:-1],
    lambda text: b64encode(text.encode()).decode(),
)
"""How a secret can be encoded; most passwords have a single form in most of them."""


def forms_of(secret: str) -> frozenset[str]:
    """List the forms in which a secret can be printed; for the same secret always the same ones.

    :param secret: the secret as it was entered.
    :return: the secret as URLs, forms, JSON, HTML and base64 write it, also where white space was trimmed or folded;
        none is empty.
    """
    texts = {secret, secret.strip(), " ".join(secret.split())}
    forms = {encode(text) for text in texts for encode in _ENCODERS}
    # A whole body in base64, JSON or form, contains the secret at an unknown place.
    for sent in (secret.encode(), quote_plus(secret).encode()):
        forms |= {form for form in _inside_base64(sent) if len(form) >= MIN_INSIDE_BASE64}
    return frozenset(forms - {""})


def _inside_base64(sent: bytes) -> Iterable[str]:
    """List what base64 makes of bytes within others: three texts, for they can begin at any of its three places."""
    for offset in range(3):
        encoded = b64encode(bytes(offset) + sent).decode()
        # Without the characters that depend on the neighbours.
        yield encoded[(offset * 8 + 5) // 6 : (offset + len(sent)) * 8 // 6]


def redact(message: str, secrets: Iterable[str]) -> str:
    """Remove secrets from a message, in every form in which they can be printed.

    :param message: what is about to be shown.
    :param secrets: what must not be in it.
    :return: the message, with ``***`` for each secret.
    """
    # Longest first: a short secret that is part of a long one would leave the rest of it.
    for form in sorted({form for secret in secrets for form in forms_of(secret)}, key=len, reverse=True):
        message = message.replace(form, "***")
    return message
