"""The errors of this provider: one family, each member carrying its evidence.

::

    AirflowException
    └── OneboxError                     anything that went wrong with Onebox
        ├── OneboxConfigError       *   a connection or an argument that can't work; nothing was sent
        ├── OneboxAuthError         *   Onebox rejected the e-mail, the password, the site or a new token
        ├── OneboxQuotaError            outside the hours in which Onebox answers this account
        ├── OneboxUnavailableError      no usable answer after all tries: not reached, timed out, 429, 502, 503, 504
        ├── OneboxRequestError          Onebox understood the call and rejected it
        ├── OneboxResponseError         a reply that makes no sense: HTML, cut off, empty, a redirect
        └── OneboxUncertainWriteError * a write that may or may not have been done

    * also an AirflowFailException: the task fails at once, because a retry can't help or could do harm
"""

from __future__ import annotations

from typing import ClassVar

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

MAX_SHOWN = 200
"""Characters of a server's words that go into a message."""


def sanitize(words: object, limit: int = MAX_SHOWN) -> str:
    """Make foreign words safe to show: printable, on one line, shortened.

    :param words: what the server said; anything that is not a string is converted.
    :param limit: the most characters to keep.
    :return: the words, with every run of white space or control characters as one space.
    """
    # A factor of four is enough to survive the folding of white space, and bounds the work.
    text = str(words)[: limit * 4]
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


class OneboxError(AirflowException):
    """Anything that went wrong with Onebox.

    :param message: what happened, to whom, and what to do; one line.
    :param status: the HTTP status of the reply, if there was one.
    :param code: Onebox's own ``errorCode``, as text.
    :param server_message: Onebox's own ``userMessage``, shortened and on one line.
    :param retryable: whether the same call can succeed later; the class's own verdict if not given.
    :param retry_after: seconds that the server asks to wait, if it said so.
    :param may_have_acted: whether Onebox may have done what it was asked to do; the class's own verdict if not
        given. ``False`` means that it has not: the call never left, or was rejected.
    """

    retryable: bool = False
    may_have_acted: bool = False

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        server_message: str | None = None,
        retryable: bool | None = None,
        retry_after: float | None = None,
        may_have_acted: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.server_message = server_message
        self.retry_after = retry_after
        if retryable is not None:
            self.retryable = retryable
        if may_have_acted is not None:
            self.may_have_acted = may_have_acted


class OneboxConfigError(OneboxError, AirflowFailException):
    """A connection or an argument that can't work. Raised before anything is sent."""


class OneboxAuthError(OneboxError, AirflowFailException):
    """Onebox rejected the e-mail, the password or the site, or rejected a token it had just given.

    Fails the task at once: every retry with the same password brings the account nearer to a lock.
    """


class OneboxQuotaError(OneboxError):
    """Onebox answers this account only within certain hours, and it is outside them.

    The token is good and a new one does not help. :attr:`server_message` holds the hours.
    """

    retryable = True


class OneboxUnavailableError(OneboxError):
    """No usable answer after all tries: connection refused or dropped, timeout, 429, 502, 503 or 504."""

    retryable = True


class OneboxRequestError(OneboxError):
    """Onebox understood the call and rejected it: no such record, a missing field, an error of its own."""


class OneboxResponseError(OneboxError):
    """A reply that makes no sense where Onebox's JSON was expected."""

    retryable = True


class OneboxUncertainWriteError(OneboxError, AirflowFailException):
    """A write was sent and no readable answer came back, so it may or may not have been done.

    Fails the task at once: a retry could write twice. Look in Onebox before the task is cleared.
    """

    may_have_acted = True
    remedy: ClassVar[str] = "It may have been done: look in Onebox before you clear the task"
