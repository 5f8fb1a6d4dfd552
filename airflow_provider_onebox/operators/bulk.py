"""An operator for many writes at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_onebox.exceptions import OneboxRequestError, OneboxUncertainWriteError
from airflow_provider_onebox.hooks.onebox import OneboxHook
from airflow_provider_onebox.operators.onebox import _OneboxOperator, _path
from airflow_provider_onebox.writes.columns import ColumnMapping

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.providers.common.compat.sdk import Context

WRITES = {"ticket": "create_ticket", "contact": "create_contact", "message": "send_message"}
"""What can be written, and the method of the hook whose arguments the rows hold."""


class OneboxBulkWriteOperator(_OneboxOperator):
    """Create many tickets, contacts or messages, and record the result of each.

    The results file is JSON Lines, one line per row: ``{"row": 0, "result": "done", "key": ..., "id": "515090"}``. A
    result is ``done``, ``rejected`` (nothing was written) or ``uncertain`` (it may or may not have been written: check
    in Onebox); the last two have the reason as ``message``. While the task runs, the file also holds ``begun`` rows.

    A row that names files of the worker is rejected, unless they are below ``attachments_root``: rows often come from
    a file that somebody else wrote.

    A retried or cleared task resumes: it skips rows that are done, retries rejected rows, and leaves uncertain rows
    alone. To write one of those again, delete its line; to write all of them again, set ``repeat_uncertain``. Then
    clear the task. A row is identified by what is sent, so the rows may be reordered.

    Each row is recorded on disk before it is sent, so the file must be a plain one, on a volume shared by all workers
    that may run the task; object stores can't append and are rejected. Use a different path for each run, with
    ``{{ run_id }}``.

    The task returns ``{"path", "count", "done", "rejected", "uncertain"}``.

    API pages: Create a ticket, Create a contact, Send a message.

    :param kind: ``ticket``, ``contact`` or ``message``.
    :param rows: dictionaries with the arguments of the hook's ``create_ticket``, ``create_contact`` or
        ``send_message``, in any spelling (``Full Name`` is ``full_name``): a list, a list of such lists, or the path of
        a JSON Lines or CSV file, gzip if it ends in ``.gz``. (templated)
    :param results_path: the file of the results. (templated)
    :param columns: the argument of each column of the rows that is named otherwise, such as ``{"Customer": "name"}``;
        ``None`` to leave a column out.
    :param attachments_root: the folder below which the files are that rows may name, as for ``ObjectStoragePath``;
        ``None`` for no files. (templated)
    :param parallelism: the most writes in flight, 1 to 32. (templated)
    :param max_failed_share: the share of the rows that may be rejected or uncertain without failing the task: 0 for
        none, 1 for all.
    :param repeat_uncertain: whether to send uncertain rows again, which can write them twice.
    :param onebox_conn_id: the Airflow connection of type Onebox. (templated)
    :param site_id: a site to use in place of the connection's own. (templated)
    :param token: a token from an upstream task; without it the task logs in by itself. (templated)
    """

    template_fields: Sequence[str] = (
        *_OneboxOperator.template_fields,
        "rows",
        "results_path",
        "attachments_root",
        "parallelism",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"rows": "json"}

    def __init__(
        self,
        *,
        kind: str,
        rows: Any,
        results_path: Any,
        columns: dict[str, str | None] | None = None,
        attachments_root: Any = None,
        parallelism: int | str = 4,
        max_failed_share: float = 0.0,
        repeat_uncertain: bool = False,
        onebox_conn_id: str = OneboxHook.default_conn_name,
        site_id: str | int | None = None,
        token: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(onebox_conn_id=onebox_conn_id, site_id=site_id, token=token, **kwargs)
        if kind not in WRITES:
            raise ValueError(f"kind={kind!r} is none of {', '.join(WRITES)}.")
        if not 0 <= max_failed_share <= 1:
            raise ValueError(f"max_failed_share={max_failed_share!r} is not a number from 0 (no row) to 1 (all).")
        if columns:
            ColumnMapping(getattr(OneboxHook, WRITES[kind]), columns)  # Checks them while the DAG is parsed.
        self.kind = kind
        self.rows = _path(rows)
        self.results_path = _path(results_path)
        self.columns = columns
        self.attachments_root = _path(attachments_root)
        self.parallelism = parallelism
        self.max_failed_share = max_failed_share
        self.repeat_uncertain = repeat_uncertain

    def execute(self, context: Context) -> dict[str, Any]:
        """Write the rows that are not done yet.

        :param context: the task's context.
        :return: how many rows have each result.
        :raises OneboxUncertainWriteError: if too many rows are rejected or uncertain, and one is uncertain.
        :raises OneboxRequestError: if too many rows are rejected.
        :raises OneboxConfigError: if an argument is invalid; nothing is sent then.
        :raises OneboxError: if Onebox can't be used; a retry resumes with the remaining rows.
        """
        from airflow_provider_onebox._airflow.lineage import report_file
        from airflow_provider_onebox.files.atomic import storage_path
        from airflow_provider_onebox.files.reading import read_rows
        from airflow_provider_onebox.writes import DONE, REJECTED, UNCERTAIN
        from airflow_provider_onebox.writes.bulk import write_rows
        from airflow_provider_onebox.writes.results import ResultsFile

        ti: Any = context["ti"]
        # Made here, because the threads are in no task.
        settings = self.hook.settings
        write = getattr(self.hook, WRITES[self.kind])
        columns = ColumnMapping(write, self.columns)
        target = (self.kind, settings.base_url, settings.site_id)
        with ResultsFile(self.results_path, (ti.dag_id, ti.task_id, ti.run_id, ti.map_index)) as file:
            results, first = write_rows(
                map(columns.rename, read_rows(self.rows, columns.check)),
                write,
                target,
                file,
                parallelism=self.parallelism,
                repeat_uncertain=self.repeat_uncertain,
                attachments_root=self.attachments_root,
            )
        report_file(storage_path(file.name), is_output=True, count=results.total())
        count, failed = results.total(), results.total() - results[DONE]
        summary = f"{file.name}: of {count:,} rows, {results[DONE]:,} are done, {results[REJECTED]:,} rejected, "
        summary += f"{results[UNCERTAIN]:,} uncertain. {first}".rstrip(" .")
        self.log.info("%s.", summary)
        if failed > self.max_failed_share * count:
            if results[UNCERTAIN]:
                raise OneboxUncertainWriteError(
                    f"{summary}. Those uncertain may have been written: check in Onebox. When you clear the task, they "
                    "are not sent again unless you set repeat_uncertain or delete their lines."
                )
            raise OneboxRequestError(
                f"{summary}. The file has the reason for each. When you clear the task, only those rows are sent again."
            )
        result = {
            "path": file.name,
            "count": count,
            **{result: results[result] for result in (DONE, REJECTED, UNCERTAIN)},
        }
        self._report_to_outlets(context, result)
        return result
