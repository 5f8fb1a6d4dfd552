"""Print the installed Airflow's tables of providers, and as JSON the connection form of Onebox as its page gets it."""

from __future__ import annotations

import json
import sys

from airflow.providers_manager import ProvidersManager
from run_commands import MARK, main

main(['["providers", "list"]', '["providers", "hooks"]'])

try:
    from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService
except ImportError:  # Airflow 2, whose page takes the widgets as they are
    manager = ProvidersManager()
    behaviour = manager.field_behaviours["onebox"]
    prefix = "extra__onebox__"
    widgets = {name: info.field for name, info in manager.connection_form_widgets.items() if name.startswith(prefix)}
    form = {
        "hidden": behaviour["hidden_fields"],
        "labels": behaviour["relabeling"],
        "extra": {name.removeprefix(prefix): [w.args[0], w.kwargs["description"]] for name, w in widgets.items()},
    }
else:
    (found,) = [hook for hook in HookMetaService.hook_meta_data() if hook.connection_type == "onebox"]
    fields = {name.removeprefix("url_"): shown for name, shown in found.standard_fields or () if shown}
    form = {
        "hidden": [name for name, shown in fields.items() if shown.hidden],
        "labels": {name: shown.title for name, shown in fields.items() if shown.title},
        "extra": {n: [p["schema"].get("title"), p["description"]] for n, p in (found.extra_fields or {}).items()},
    }
sys.stdout.write(f"{MARK}\n{json.dumps(form)}\n")
