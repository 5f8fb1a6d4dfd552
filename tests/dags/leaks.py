"""Every way in which a task can meet the password or a token, going well and going wrong."""

from __future__ import annotations

import http.client
import logging
import sys

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_onebox.hooks.onebox import OneboxHook
from airflow_provider_onebox.operators.bulk import OneboxBulkWriteOperator
from airflow_provider_onebox.operators.messages import OneboxListConversationsOperator, OneboxSendMessageOperator
from airflow_provider_onebox.operators.onebox import (
    OneboxAuthenticateOperator,
    OneboxCreateTicketOperator,
    OneboxListOperator,
    OneboxRequestOperator,
)
from airflow_provider_onebox.sensors.onebox import OneboxRecordSensor

log = logging.getLogger("airflow_provider_onebox.user")
for chatty in ("airflow_provider_onebox", "requests", "urllib3"):
    logging.getLogger(chatty).setLevel(logging.DEBUG)
    # Airflow 3 lets no logger say more than the deployment's level; what a task prints is in its log all the same.
    logging.getLogger(chatty).addHandler(logging.StreamHandler(sys.stderr))

CONNECTION = "onebox_secret"

with DAG("leaks", schedule=None, catchup=False, default_args={"retries": 0, "onebox_conn_id": CONNECTION}):
    plain = OneboxAuthenticateOperator(task_id="plain")
    encrypted = OneboxAuthenticateOperator(task_id="encrypted", encrypt=True)
    by_template = "{{ ti.xcom_pull('plain') }}"

    @task(trigger_rule="all_done")
    def log_the_token(token):
        hook = OneboxHook(CONNECTION, token=token)
        opened = hook.get_token()
        log.warning("user code logs %s and %s", token, opened)
        print("user code prints", opened, hook.get_conn().headers, vars(hook), hook.client.settings)  # noqa: T201

    @task(trigger_rule="all_done")
    def fail_with_the_hook(token):
        hook = OneboxHook(CONNECTION, token=token)
        value = hook.get_token()
        raise ValueError(f"user code fails with {value} and {hook.client.settings.password}")

    @task(trigger_rule="all_done")
    def log_the_password():
        hook = OneboxHook(CONNECTION)
        log.error("user code logs %s", hook.client.settings.password)
        hook.request("GET", "ticketrz/1")

    @task
    def print_requests():
        import requests

        hook = OneboxHook(CONNECTION)
        session = hook.get_conn()
        response = session.get(hook.url_for("ticketrz"), params={"limit": 1})
        prepared = session.prepare_request(requests.Request("GET", response.url))
        for request in (response.request, prepared):
            print("printed request", request.headers, vars(request))  # noqa: T201
        print(vars(session), vars(response), response.headers)  # noqa: T201

    @task
    def debug_http():
        http.client.HTTPConnection.debuglevel = 1
        hook = OneboxHook(CONNECTION)
        hook.request("GET", "ticketrz")
        hook.get_conn().get(hook.url_for("ticketrz"))

    @task
    def show_locals(conn_id, endpoint):
        from rich.console import Console
        from rich.traceback import Traceback

        # As `[logging]` handlers with locals, Sentry and notebooks do.
        console = Console(width=400, file=sys.stdout)
        for call in (
            lambda hook: hook.request("GET", endpoint),
            lambda hook: hook.request("POST", endpoint, json={}),
            lambda hook: hook.get_conn().get(hook.url_for(endpoint), timeout=1).raise_for_status(),
        ):
            try:
                call(OneboxHook(conn_id))
            except Exception:  # noqa: BLE001 - any error is shown
                console.print(Traceback(width=400, show_locals=True, locals_max_string=None, locals_max_length=None))

    print_requests()
    debug_http()
    for name, conn_id, endpoint in (
        ("rejected", "onebox_wrong", "ticketrz"),
        ("unreachable", "onebox_gone", "ticketrz"),
        ("server_error", CONNECTION, "echo500"),
        ("slow", "onebox_slow", "slow"),
    ):
        show_locals.override(task_id=f"locals_{name}")(conn_id, endpoint)

    log_the_token.override(task_id="log_plain")(token=plain.output)
    log_the_token.override(task_id="log_sealed")(token=encrypted.output)
    fail_with_the_hook(token=plain.output)
    log_the_password()

    for name, token in (("plain", by_template), ("encrypted", encrypted.output), ("none", None)):
        listed = OneboxListOperator(task_id=f"list_{name}", resource="ticketrz", max_records=2, token=token)
        if token:
            [plain, encrypted] >> listed
    OneboxRequestOperator(task_id="expired", endpoint="ticketrz", token="{{ var.value.expired }}")
    OneboxAuthenticateOperator(task_id="wrong_password", onebox_conn_id="onebox_wrong")
    OneboxRequestOperator(task_id="unreachable", onebox_conn_id="onebox_gone", endpoint="ticketrz")
    OneboxRequestOperator(task_id="server_error", endpoint="echo500")
    OneboxRequestOperator(task_id="slow", onebox_conn_id="onebox_slow", endpoint="slow")
    OneboxCreateTicketOperator(
        task_id="ticket",
        full_name="A",
        contact="a@example.com",
        subject="s",
        category="c",
        content="x",
        token=by_template,
    ).set_upstream(plain)
    folder = "{{ var.value.folder }}"
    bulk = OneboxBulkWriteOperator(
        task_id="bulk",
        kind="contact",
        rows=[{"name": "A"}, {"name": "B"}],
        results_path=f"{folder}/results.jsonl",
        token=by_template,
    )
    send = OneboxSendMessageOperator(task_id="send", connection_id="3", body="x", token=encrypted.output)
    plain >> bulk
    OneboxListConversationsOperator(
        task_id="conversations",
        tickets="{{ var.value.tickets }}",
        output_path=f"{folder}/messages.jsonl",
        attachments_path=f"{folder}/attachments",
        attachment_hosts=["localhost"],
    )
    OneboxListConversationsOperator(
        task_id="conversations_gone",
        onebox_conn_id="onebox_gone",
        tickets="{{ var.value.tickets }}",
        output_path=f"{folder}/none.jsonl",
        attachments_path=f"{folder}/none",
    )
    OneboxRecordSensor(
        task_id="wait", resource="prospectrz", since_id="0", min_count=51, deferrable=True, poke_interval=1
    )
    OneboxRecordSensor(
        task_id="wait_in_vain",
        resource="ticketrz",
        since_id="0",
        min_count=999,
        timeout=3,
        poke_interval=1,
        deferrable=True,
        token=encrypted.output,
    )
