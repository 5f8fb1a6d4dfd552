"""Use the hook in a task. Each task try logs in once by itself, so you pass no token."""

from __future__ import annotations

from typing import Any

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_onebox.hooks.onebox import OneboxHook

with DAG("example_onebox_hook", schedule=None, catchup=False, tags=["onebox"], doc_md=__doc__):

    @task
    def newest_contacts() -> list[str]:
        hook = OneboxHook("onebox_default")
        contacts = hook.list_records("contactrz", since="2017-01-01 00:00", max_records=3)
        return [contact["Id"] for contact in contacts]

    @task
    def read_contacts(ids: list[str]) -> list[dict[str, Any]]:
        hook = OneboxHook("onebox_default")
        return [hook.request("GET", f"contactrz/{contact_id}") for contact_id in ids]

    read_contacts(newest_contacts())
