"""What Airflow stores of a task's result."""

from __future__ import annotations

import json
from typing import Any


def as_stored(result: Any) -> Any:
    """Serialize a result as Airflow does for an XCom.

    :param result: what a task returns.
    :return: the JSON that Airflow stores; ``None`` if an XCom backend of the deployment's own, or pickling, decides.
    :raises Exception: if Airflow can't serialize it.
    """
    from airflow.providers.common.compat.sdk import XCom

    owner = next(parent for parent in XCom.__mro__ if "serialize_value" in vars(parent))
    if owner.__name__ != "BaseXCom":
        return None
    stored = XCom.serialize_value(result)
    if not isinstance(stored, bytes):
        return stored
    # Airflow 2: JSON text, or a pickle if [core] enable_xcom_pickling is set.
    return json.loads(stored) if stored[:1] != b"\x80" else None
