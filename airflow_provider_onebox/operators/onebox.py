"""Operators: template fields in, one call of the hook, a small result out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_onebox.hooks.onebox import OneboxHook

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.providers.common.compat.sdk import Context


class OneboxAuthenticateOperator(BaseOperator):
    """Sign in to Onebox and publish the token for downstream tasks.

    The token is pushed to XCom as ``return_value``; beside it ``expires_at`` (ISO 8601, UTC, ``None`` if the
    token does not tell) and ``site_id``. It lives 15 minutes.

    Whoever can read XComs in the Airflow page or through its API can read the token there and act with it as
    the user of the connection until it expires. A task that uses :class:`~airflow_provider_onebox.hooks.onebox.
    OneboxHook` with the connection signs in by itself and needs no token from upstream.

    API page: Authentication - Token, ``POST {host}/api/authenticate``.

    :param onebox_conn_id: the Airflow connection of type Onebox. (templated)
    :param site_id: a site to use in place of the connection's own. (templated)
    """

    template_fields: Sequence[str] = ("onebox_conn_id", "site_id")
    ui_color = "#e5f3ff"

    def __init__(
        self,
        *,
        onebox_conn_id: str = OneboxHook.default_conn_name,
        site_id: str | int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.onebox_conn_id = onebox_conn_id
        self.site_id = site_id

    def execute(self, context: Context) -> str:
        """Sign in.

        :param context: the task's context.
        :return: the token.
        :raises OneboxAuthError: if Onebox refuses the e-mail, the password or the site.
        :raises OneboxError: if a token can't be had for another reason.
        """
        client = OneboxHook(self.onebox_conn_id, site_id=self.site_id).client
        token = client.tokens.get()
        expires_at = token.expires_at.isoformat() if token.expires_at else None
        self.log.info(
            "Signed in to %s as %s for site %s; the token expires at %s.",
            client.settings.base_url,
            client.settings.email,
            client.settings.site_id,
            expires_at or "a time that it does not tell",
        )
        context["ti"].xcom_push(key="expires_at", value=expires_at)
        context["ti"].xcom_push(key="site_id", value=client.settings.site_id)
        return token.value
