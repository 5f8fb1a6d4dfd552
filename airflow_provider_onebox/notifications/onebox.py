"""The notifier: a failed task opens a ticket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseNotifier

from airflow_provider_onebox.hooks.onebox import OneboxHook

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.providers.common.compat.sdk import Context

DEFAULT_SUBJECT = "Airflow: {{ ti.dag_id }}.{{ ti.task_id }} failed"
DEFAULT_CONTENT = """\
DAG: {{ ti.dag_id }}
Task: {{ ti.task_id }}
Map index: {{ ti.map_index }}
Run: {{ ti.run_id }}
Try: {{ ti.try_number }}
Log: {{ ti.log_url }}
"""


class OneboxTicketNotifier(BaseNotifier):
    """Open a ticket, for use as ``on_failure_callback``.

    The ticket names DAG, task, run, try and the link to the log. It leaves out the error's text, which can hold
    what does not belong into a ticket; the log has it. Airflow 3 calls it in the task's own process, so a task
    whose process is killed opens none.

    API page: Create a ticket, ``POST {host}/api/ticket/create``.

    :param full_name: who reports. (templated)
    :param contact: that person's e-mail address. (templated)
    :param category: the category, one that the site has. (templated)
    :param subject: the subject. (templated)
    :param content: the text. (templated)
    :param onebox_conn_id: the Airflow connection of type Onebox. (templated)
    :param site_id: a site to use in place of the connection's own. (templated)
    """

    template_fields: Sequence[str] = (
        "full_name",
        "contact",
        "category",
        "subject",
        "content",
        "onebox_conn_id",
        "site_id",
    )

    def __init__(
        self,
        *,
        full_name: str,
        contact: str,
        category: str,
        subject: str = DEFAULT_SUBJECT,
        content: str = DEFAULT_CONTENT,
        onebox_conn_id: str = OneboxHook.default_conn_name,
        site_id: str | int | None = None,
    ) -> None:
        super().__init__()
        self.full_name = full_name
        self.contact = contact
        self.category = category
        self.subject = subject
        self.content = content
        self.onebox_conn_id = onebox_conn_id
        self.site_id = site_id

    def notify(self, context: Context | Any) -> None:  # noqa: ARG002 - the signature of every notifier
        """Open the ticket.

        :param context: the failed task's context.
        :raises OneboxError: if it can't be opened; Airflow logs it, and the task's state stays.
        """
        ticket_id = OneboxHook(self.onebox_conn_id, site_id=self.site_id).create_ticket(
            full_name=self.full_name,
            contact=self.contact,
            subject=self.subject,
            category=self.category,
            content=self.content,
        )
        self.log.info("Opened Onebox ticket %s.", ticket_id)
