"""The connection form of Airflow 2.11 to 3.1, which ask the hook for it; later versions read the provider info."""

from __future__ import annotations

import json
from typing import Any

from airflow_provider_onebox.provider_info import CONN_FIELDS, UI_FIELD_BEHAVIOUR


def field_behaviour() -> dict[str, Any]:
    """Return how the form shows the standard fields.

    :return: the declaration of the provider info, in the older spelling.
    """
    return {key.replace("-", "_"): value for key, value in UI_FIELD_BEHAVIOUR.items()}


def form_widgets() -> dict[str, Any]:
    """Return the extra fields of the form.

    :return: a WTForms field for each entry of the declaration, by its name.
    """
    # Only names and arguments for which Airflow 3.0 and 3.1 have stand-ins. Airflow 2 has one form for all
    # connection types, so a field that is required here would be required everywhere.
    from flask_appbuilder.fieldwidgets import BS3TextFieldWidget
    from wtforms import BooleanField, IntegerField, StringField
    from wtforms.validators import Optional

    text = BS3TextFieldWidget()

    # Airflow 2 puts stored JSON values into the fields as Python objects and saves what it shows: an object would
    # become Python's text for it, and the text "false" would become true. It accepts only its own field classes.
    def show_text(field: Any, **attributes: Any) -> Any:
        if field.data is not None and not isinstance(field.data, str):
            attributes["value"] = json.dumps(field.data)
        return text(field, **attributes)

    def show_switch(field: Any, **attributes: Any) -> Any:
        field.data = str(field.data).strip().lower() == "true"
        return type(field).widget(field, **attributes)

    fields = {"integer": IntegerField, "boolean": BooleanField}
    widgets: dict[str, Any] = {}
    for name, declared in CONN_FIELDS.items():
        kind = declared["schema"]["type"]
        kind = kind if isinstance(kind, str) else kind[0]
        widgets[name] = fields.get(kind, StringField)(
            declared["label"],
            validators=[Optional()],
            description=declared["description"],
            widget=show_switch if kind == "boolean" else show_text,
        )
    return widgets
