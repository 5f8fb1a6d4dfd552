"""Use the hook in your own tasks. Each task try logs in once by itself, so you pass no token."""

from __future__ import annotations

from typing import Any

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_onebox.hooks.onebox import OneboxHook

with DAG("example_onebox_hook", schedule=None, catchup=False, tags=["onebox"], doc_md=__doc__):

    @task
    def first_contacts() -> list[str]:
        # Onebox lists the oldest first.
        contacts = OneboxHook("onebox_default").list_records("contactrz", max_records=3)
        return [contact["Id"] for contact in contacts]

    @task
    def read_contacts(ids: list[str]) -> list[dict[str, Any]]:
        hook = OneboxHook("onebox_default")
        return [hook.request("GET", f"contactrz/{contact_id}") for contact_id in ids]

    read_contacts(first_contacts())
