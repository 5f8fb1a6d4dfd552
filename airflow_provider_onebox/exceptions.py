"""The errors of this provider: subclasses of one base class, each with the details of its failure.

::

    AirflowException
    └── OneboxError                     anything that went wrong with Onebox
        ├── OneboxConfigError       *   a connection or an argument is invalid; nothing was sent
        ├── OneboxAuthError         *   Onebox rejected the e-mail, the password or the site
        ├── OneboxServiceHoursError            it is outside the hours in which Onebox serves this account
        ├── OneboxUnavailableError      no usable response after all retries: not reached, timed out, 429, 502, 503, 504
        ├── OneboxRequestError          Onebox understood the call and rejected it
        ├── OneboxResponseError         the response makes no sense: HTML, truncated, empty, a redirect
        ├── OneboxUnusableResultError * the call was made, and its result can't be used
        └── OneboxUncertainWriteError * a write may or may not have been done

    * also an AirflowFailException: the task fails at once, because a retry can't help or could do harm
"""

from __future__ import annotations

from typing import ClassVar

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

MAX_SHOWN = 200
"""The most characters of a server's message that an error shows."""


def sanitize(words: object, limit: int = MAX_SHOWN) -> str:
    """Make a server's message safe to show: printable, on one line, shortened.

    :param words: the message; anything that is not a string is converted.
    :param limit: the most characters to keep.
    :return: the message, with every run of white space or control characters as one space.
    """
    # A factor of four is enough to survive the folding of white space, and bounds the work.
    text = str(words)[: limit * 4]
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def reason_of(error: BaseException) -> str:
    """Return the reason that an error gives, safe to show.

    :param error: an error of the operating system or of a library.
    :return: its ``strerror`` or its message, on one line.
    """
    return sanitize(getattr(error, "strerror", None) or error)


class OneboxError(AirflowException):
    """Anything that went wrong with Onebox.

    :param message: what happened, where, and what to do; one line.
    :param status: the HTTP status of the response, if there was one.
    :param code: Onebox's own ``errorCode``, as text.
    :param server_message: Onebox's own ``userMessage``, shortened and on one line.
    :param retryable: whether the same call can succeed later; by default, what the class says.
    :param retry_after: seconds that the server asked to wait, if it did.
    :param uncertain: whether it is uncertain what Onebox did with the call; by default, what the class says. ``False``
        means that it did nothing: the call was never sent, or was rejected.
    """

    retryable: bool = False
    uncertain: bool = False

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        server_message: str | None = None,
        retryable: bool | None = None,
        retry_after: float | None = None,
        uncertain: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.server_message = server_message
        self.retry_after = retry_after
        if retryable is not None:
            self.retryable = retryable
        if uncertain is not None:
            self.uncertain = uncertain


class OneboxConfigError(OneboxError, AirflowFailException):
    """A connection or an argument is invalid. Raised before anything is sent."""


class OneboxAuthError(OneboxError, AirflowFailException):
    """Onebox rejected the e-mail, the password or the site.

    Fails the task at once: each retry with the same password could get the account locked.
    """


class OneboxServiceHoursError(OneboxError):
    """Onebox serves this account only within certain hours, and it is outside them.

    The token is valid; a new one does not help. :attr:`server_message` names the hours.
    """

    retryable = True


class OneboxUnavailableError(OneboxError):
    """No usable response after all retries: connection refused or dropped, timeout, 429, 502, 503 or 504.

    Also after a successful login, if Onebox rejects the token that it has just issued.
    """

    retryable = True


class OneboxRequestError(OneboxError):
    """Onebox understood the call and rejected it: no such record, a missing field, an internal error."""


class OneboxResponseError(OneboxError):
    """The response is not the JSON that Onebox should have sent."""

    retryable = True


class OneboxUnusableResultError(OneboxError, AirflowFailException):
    """The call was made, and its result can't be used: a failing ``response_filter``, too much for an XCom, a 407.

    ``uncertain`` is true if the call was a write. Fails the task at once: a retry would make the call again.
    """


class OneboxUncertainWriteError(OneboxError, AirflowFailException):
    """A write was sent and has no readable response, so it may or may not have been done.

    Fails the task at once: a retry could write twice. Check in Onebox before you clear the task.
    """

    uncertain = True
    remedy: ClassVar[str] = "It may have been done: look in Onebox before you clear the task"
