"""A local Onebox to develop and test against; it needs the extra ``sandbox``, nothing else of the package.

It is written from the description of the protocol alone, so that it can contradict the client. Start it
with ``python -m airflow_provider_onebox.sandbox``, or in a test with :class:`Sandbox`.
``POST /sandbox/<call>`` runs a method of :class:`~airflow_provider_onebox.sandbox.state.State`, with a JSON
object as its arguments, such as ``{"kind": "expired", "path": "ticketrz"}`` for ``fail`` or ``{"token_life": 60}``
for ``configure``; ``--help`` lists them all.
"""

from __future__ import annotations

try:
    from .server import Sandbox
except ModuleNotFoundError as problem:
    raise ModuleNotFoundError(
        f"{problem}; the sandbox needs: pip install 'airflow-provider-onebox[sandbox]'", name=problem.name
    ) from problem

__all__ = ["Sandbox"]
