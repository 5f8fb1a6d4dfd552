"""Whether Onebox can be used: a record that can't be read is distinguished from a service that is down."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_onebox.exceptions import OneboxRequestError

if TYPE_CHECKING:
    from airflow_provider_onebox.api.client import OneboxClient


def check_available(client: OneboxClient) -> None:
    """List one ticket, after another call failed. An expired token is renewed by that.

    :param client: the client whose call failed.
    :raises OneboxError: if Onebox or the account can't be used.
    """
    try:
        client.request("GET", "ticketrz", params={"limit": 1})
    except OneboxRequestError as error:
        # With another status, Onebox works, and this user may not list tickets.
        if error.retryable:
            raise
