"""The forms in which a secret travels, and how they are taken out of words that others see."""

from __future__ import annotations

import html
import json
from base64 import b64encode
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus

if TYPE_CHECKING:
    from collections.abc import Iterable


def forms_of(secret: str) -> frozenset[str]:
    """List the forms in which a secret can travel or be printed: few, and always the same.

    :param secret: the secret as it was entered.
    :return: the secret itself, and as a form, a URL, JSON, HTML, Python and base64 write it; none is empty.
    """
    sent = secret.encode()
    forms = {
        secret,
        quote_plus(secret),
        quote(secret),
        quote(secret, safe=""),
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        # As PHP writes JSON, and as a page repeats what it was sent.
        json.dumps(secret)[1:-1].replace("/", "\\/"),
        html.escape(secret),
        repr(secret)[1:-1],
        repr(sent)[2:-1],
        b64encode(sent).decode(),
    }
    return frozenset(forms - {""})


def redact(words: str, secrets: Iterable[str]) -> str:
    """Take secrets out of words, in every form in which they travel.

    :param words: what is about to be shown.
    :param secrets: what must not be in it.
    :return: the words, with ``***`` for each secret.
    """
    # Longest first: a short secret that is part of a long one would leave the rest of it.
    for form in sorted({form for secret in secrets for form in forms_of(secret)}, key=len, reverse=True):
        words = words.replace(form, "***")
    return words
