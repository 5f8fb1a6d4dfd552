"""What Airflow reads about this provider. Every Airflow process imports this module, so it imports almost nothing."""

from __future__ import annotations

from typing import Any

CONN_FIELDS: dict[str, dict[str, Any]] = {
    "site_id": {
        "label": "Site ID",
        "description": "The number of the Onebox site to log in to, for example 169.",
        # Airflow's page requires what may not be null, and keeps letters out of a number; it reads no pattern.
        # It would turn a mistyped number below a minimum into the minimum, which is another site.
        "schema": {"type": "integer"},
    },
    "timezone": {
        "label": "Time zone",
        "description": "Onebox's own zone, such as Asia/Jakarta. Needed for times with an offset; no default.",
        "schema": {"type": ["string", "null"]},
    },
    "timeout": {
        "label": "Timeout (seconds)",
        "description": "For connecting and for each read; a whole response may take ten times as long. Default: 30.",
        "schema": {"type": ["number", "null"]},
    },
    "max_retries": {
        "label": "Retries",
        "description": "How often to retry a call after a transient error. Default: 3.",
        "schema": {"type": ["integer", "null"], "minimum": 0},
    },
    "verify": {
        "label": "TLS verification",
        "description": "true (the default), the path of a CA file on the workers, or false to switch it off.",
        "schema": {"type": ["string", "null"]},
    },
    "proxies": {
        "label": "Proxies",
        "description": 'Proxies by scheme, as JSON: {"https": "http://user:password@proxy.example:3128"}.',
        # Without "object", the page of Airflow 3.3 shows a connection made from JSON as [object Object].
        "schema": {"type": ["string", "object", "null"]},
    },
    "allow_http": {
        "label": "Allow plain HTTP",
        "description": "Allow http:// for hosts other than localhost. It sends the password unencrypted.",
        "schema": {"type": ["boolean", "null"], "default": False},
    },
}
"""The connection's extra fields, by the name they are stored under."""

UI_FIELD_BEHAVIOUR: dict[str, Any] = {
    "hidden-fields": ["schema"],
    "relabeling": {"host": "Onebox URL", "login": "Email", "password": "Password", "port": "Port, usually 443"},
    "placeholders": {
        "host": "https://cloud.onebox.co.id",
        "login": "name@example.com",
        # Airflow 3.2 and 3.3 close that section at first, and keep Save off.
        "password": "Required too: Site ID, in the section below",
        # Airflow 3.3.1 and 3.3.2 can't test a connection without one.
        "port": "Enter 443 if Test shows Bad Request",
        "site_id": "169",
        "timeout": "30",
        "max_retries": "3",
        "verify": "true",
    },
}
"""How the standard fields of the connection form are shown."""


_URIS = [
    {
        "schemes": ["onebox"],
        "handler": "airflow_provider_onebox.assets.onebox.sanitize_uri",
        "factory": "airflow_provider_onebox.assets.onebox.create_asset",
        "to_openlineage_converter": "airflow_provider_onebox.assets.onebox.convert_asset_to_openlineage",
    }
]


def get_provider_info() -> dict[str, Any]:
    """Describe the provider to Airflow.

    Each Airflow reads the keys that it knows and ignores the rest, so all are always given.

    :return: a dictionary that fits ``provider_info.schema.json`` of every supported Airflow.
    """
    return {
        "package-name": "airflow-provider-onebox",
        "name": "Onebox",
        "description": "`Onebox <https://www.onebox.co.id/>`__, an omnichannel CRM cloud.",
        "integrations": [
            {"integration-name": "Onebox", "external-doc-url": "https://cloud.onebox.co.id", "tags": ["service"]}
        ],
        "connection-types": [
            {
                "connection-type": "onebox",
                "hook-class-name": "airflow_provider_onebox.hooks.onebox.OneboxHook",
                "hook-name": "Onebox",
                "ui-field-behaviour": UI_FIELD_BEHAVIOUR,
                "conn-fields": CONN_FIELDS,
            }
        ],
        "hooks": _modules("hooks.onebox"),
        "operators": _modules("operators.onebox", "operators.messages", "operators.bulk"),
        "sensors": _modules("sensors.onebox"),
        "triggers": _modules("triggers.onebox"),
        "notifications": ["airflow_provider_onebox.notifications.onebox.OneboxTicketNotifier"],
        "asset-uris": _URIS,
        "dataset-uris": _URIS,  # Airflow 2.
        "retry-policies": _modules("retry_policy"),
    }


def _modules(*names: str) -> list[dict[str, Any]]:
    return [
        {"integration-name": "Onebox", "python-modules": [f"airflow_provider_onebox.{name}" for name in names]},
    ]
