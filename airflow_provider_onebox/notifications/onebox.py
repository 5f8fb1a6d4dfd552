"""The notifier: a failed task opens a ticket."""

from __future__ import annotations

import copy
import json
import logging
from typing import TYPE_CHECKING, Any, Literal

from airflow.providers.common.compat.sdk import BaseNotifier, Variable

from airflow_provider_onebox._airflow.compat import failed_tasks
from airflow_provider_onebox.exceptions import OneboxError, sanitize
from airflow_provider_onebox.hooks.onebox import OneboxHook

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from airflow.providers.common.compat.sdk import Context

log = logging.getLogger(__name__)

NOTIFY_SECONDS = 5.0
"""Seconds that opening the ticket may take, including the login; Airflow 3 ends the task's process after 20 s."""

STATES = {"success": "succeeded", "skipped": "was skipped", "running": "has begun", "up_for_retry": "will be retried"}
"""What the subject says of a task that has not failed, by its state."""

KEPT_TICKETS = 100
"""Failures whose ticket is remembered for each DAG, with ``once_per``."""


class OneboxTicketNotifier(BaseNotifier):
    """Open a ticket, for use as ``on_failure_callback`` of a task or a DAG, and with deadline alerts.

    By default, the ticket contains the DAG, task, run, try and a link to the log; as a DAG's callback, it names every
    failed task, and for a missed deadline, the run and the deadline. It omits the error message, which can contain
    something that does not belong in a ticket; the log has it. If a template of ``subject`` or ``content`` fails, the
    ticket has the default text, and the log says so.

    Opening the ticket takes at most :data:`NOTIFY_SECONDS` and is not retried: if it fails, the log says so in one
    line, and nothing else happens. Airflow 3 calls the notifier in the task's own process, so a task whose process is
    killed opens no ticket.

    For a deadline, use it with ``AsyncCallback``: Airflow gives a ``SyncCallback`` no connections.

    With ``once_per``, an Airflow Variable remembers the ticket, and later failures of the same run or task only log its
    id. Two tasks that fail at the same moment can still open one each, because Airflow has no compare-and-set. So does
    a failure while the Variable can't be read. A missed deadline always opens a ticket.

    API page: Create a ticket, ``POST {host}/api/ticket/create``.

    :param full_name: who reports. (templated)
    :param contact: that person's e-mail address. (templated)
    :param category: the category, one that the site has. (templated)
    :param subject: the subject; what failed if ``None``. (templated)
    :param content: the text; what failed, when and where its log is if ``None``. (templated)
    :param once_per: ``"run"`` for one ticket per DAG run, ``"task"`` for one per task of a run, mapped instances
        together; ``None`` for one per failure.
    :param onebox_conn_id: the Airflow connection of type Onebox. (templated)
    :param site_id: a site to use in place of the connection's own. (templated)
    :param kwargs: what Airflow itself passes, such as the context of a deadline alert.
    :raises ValueError: if ``once_per`` is something else.
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
        subject: str | None = None,
        content: str | None = None,
        once_per: Literal["run", "task"] | None = None,
        onebox_conn_id: str = OneboxHook.default_conn_name,
        site_id: str | int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if once_per not in (None, "run", "task"):
            raise ValueError(f"once_per={once_per!r} is none of 'run', 'task' and None.")
        self.full_name = full_name
        self.contact = contact
        self.category = category
        self.subject = subject
        self.content = content
        self.once_per = once_per
        self.onebox_conn_id = onebox_conn_id
        self.site_id = site_id
        self._unrendered: list[str] = []

    def __call__(self, *args: Any) -> None:
        """Render the templates and open the ticket.

        :param args: the context.
        """
        # The base class renders in place: the next failure in this process would get the text of this one.
        BaseNotifier.__call__(copy.copy(self), *args)

    def __await__(self) -> Generator[Any, None, None]:
        waiting: Generator[Any, None, None] = BaseNotifier.__await__(copy.copy(self))
        return waiting

    def render_template_fields(self, context: Any, jinja_env: Any = None) -> None:
        """Render each field by itself, so that one template that fails keeps no ticket from being opened.

        :param context: the context of the failed task or DAG run.
        :param jinja_env: the environment; by default the DAG's.
        """
        environment = jinja_env or self.get_template_env(_rendering(context.get("dag")))
        self._unrendered = []
        for name in self.template_fields:
            try:
                setattr(self, name, self.render_template(getattr(self, name), context, environment))
            except Exception as error:  # noqa: BLE001 - a template can raise anything
                problem = f"the template of {name} failed: {type(error).__name__}: {sanitize(error)}"
                if name in ("subject", "content"):
                    self.log.error("The Onebox ticket has its default %s: %s", name, problem)
                    setattr(self, name, None)
                else:
                    self._unrendered.append(problem)

    def _render(self, template: Any, context: Any, dag: Any = None) -> Any:
        # Not the base class's, which asks the DAG of the context in any case.
        return super(BaseNotifier, self)._render(template, context, _rendering(dag or context.get("dag")))

    def notify(self, context: Context | Any) -> None:
        """Open the ticket; if it can't be opened, the log says why.

        :param context: the context of the failed task or DAG run.
        """
        advice = " In a SyncCallback, Airflow gives no access to connections: use an AsyncCallback."
        self._open(context, advice if "deadline" in context else "")

    async def async_notify(self, context: Context | Any) -> None:
        """Open the ticket from the triggerer, for deadline alerts; if it can't be opened, the log says why.

        :param context: what Airflow says about the deadline.
        """
        from airflow_provider_onebox.triggers._polling import in_thread

        await in_thread("notifications", self._open, context)

    def _open(self, context: Any, advice: str = "") -> None:
        if self._unrendered:
            self.log.error("No Onebox ticket was opened: %s", "; ".join(self._unrendered))
            return
        variable, failure = self._failure(context)
        known = _tickets(variable).get(failure) if variable else None
        if known is not None:
            self.log.info("Opened no Onebox ticket: %s has ticket %s.", failure, known)
            return
        try:
            what, details = _describe(context)
            ticket_id = OneboxHook(self.onebox_conn_id, site_id=self.site_id, time_limit=NOTIFY_SECONDS).create_ticket(
                full_name=self.full_name,
                contact=self.contact,
                subject=f"Airflow: {what}" if self.subject is None else self.subject,
                category=self.category,
                content="".join(f"{name}: {fact}\n" for name, fact in details)
                if self.content is None
                else self.content,
            )
        except OneboxError as error:
            self.log.error("No Onebox ticket was opened: %s%s", error, advice)
            return
        self.log.info("Opened Onebox ticket %s.", ticket_id)
        if variable:
            _remember(variable, failure, ticket_id)

    def _failure(self, context: Any) -> tuple[str, str]:
        """Return the Variable of the DAG's tickets and the failure's name in it; nothing without ``once_per``."""
        from airflow_provider_onebox._airflow.variables import shorten_key

        if self.once_per is None or "deadline" in context:
            return "", ""
        dag_id, failure = context["dag"].dag_id, context["run_id"]
        if self.once_per == "task" and "reason" not in context:
            failure = f"{failure}@{context['ti'].task_id}"
        return shorten_key(f"onebox_tickets@{dag_id}@{self.onebox_conn_id}@{self.site_id or ''}"), failure


def _rendering(dag: Any) -> Any:
    """Return a DAG if it can render: the one in a callback of ``airflow dags test`` can't."""
    return dag if hasattr(dag, "get_template_env") else None


def _tickets(variable: str) -> dict[str, str]:
    """Read which failures have a ticket."""
    try:
        return dict(json.loads(Variable.get(variable, None) or "{}"))
    except Exception as error:  # noqa: BLE001 - the ticket is worth more than one too many
        log.warning("The Variable %r, which holds the open tickets, can't be read: %s", variable, type(error).__name__)
        return {}


def _remember(variable: str, failure: str, ticket_id: str) -> None:
    """Write down that a failure has a ticket."""
    # Read again: another task may have failed meanwhile.
    tickets = {**_tickets(variable), failure: ticket_id}
    try:
        Variable.set(variable, json.dumps(dict(list(tickets.items())[-KEPT_TICKETS:])))
    except Exception as error:  # noqa: BLE001 - the ticket is open
        log.warning("The Variable %r, which holds the open tickets, can't be set: %s", variable, type(error).__name__)


def _describe(context: Any) -> tuple[str, list[tuple[str, Any]]]:
    """Return what happened, in a few words and in lines."""
    ti = context.get("ti")
    if "deadline" in context:
        run = context["dag_run"]
        details = [
            ("DAG", run["dag_id"]),
            ("Run", run["dag_run_id"]),
            ("Deadline", context["deadline"]["deadline_time"]),
        ]
        return f"{run['dag_id']} missed its deadline", details
    # Only callbacks of a DAG have a reason.
    if "reason" in context:
        dag_id, run_id = context["dag"].dag_id, context["run_id"]
        if context["reason"] == "success":
            return f"{dag_id} succeeded", [("DAG", dag_id), ("Run", run_id)]
        tasks = _failed_tasks(ti, dag_id, run_id, context.get("dag_run"))
        return f"{dag_id} failed", [
            ("DAG", dag_id),
            ("Run", run_id),
            ("Failed tasks", ", ".join(tasks) or "see the run"),
        ]
    details = [
        ("DAG", ti.dag_id),
        ("Task", ti.task_id),
        ("Run", ti.run_id),
        ("Try", ti.try_number),
        ("Log", ti.log_url),
    ]
    if ti.map_index >= 0:
        details.insert(2, ("Map index", ti.map_index))
    return f"{ti.dag_id}.{ti.task_id} {_outcome(context, ti)}", details


def _outcome(context: Any, ti: Any) -> str:
    state = str(getattr(ti, "state", ""))
    # Airflow 3.0 still calls a task that has failed running.
    return "failed" if state == "running" and context.get("exception") else STATES.get(state, "failed")


def _failed_tasks(ti: Any, dag_id: str, run_id: str, dag_run: Any) -> list[str]:
    """Name the tasks of a run that have failed; Airflow itself gives the callback only one of its tasks."""
    try:
        return failed_tasks(ti, dag_id, run_id, dag_run)
    except Exception as error:  # noqa: BLE001 - the ticket is worth more than the names
        log.warning("The failed tasks of run %s can't be listed: %s", run_id, type(error).__name__)
    return []
