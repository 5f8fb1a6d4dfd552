"""Tests that need no Airflow don't wait for it."""

from __future__ import annotations

import json
import sys

from support.processes import run, unmeasured

COLLECT = """
import json, sys, pytest
code = pytest.main(["-q", "--collect-only", "-p", "no:cacheprovider", *sys.argv[1:]])
print(json.dumps([code, "airflow" in sys.modules]))
"""


def test_pure_files_import_no_airflow(request):
    """Files that import only `api`, the errors and the sandbox run without Airflow."""
    files = ["tests/api/test_client.py", "tests/api/test_transport.py"]
    done = run(sys.executable, "-c", COLLECT, *files, cwd=request.config.rootpath, env=unmeasured())
    assert json.loads(done.stdout.splitlines()[-1]) == [0, False], done.stdout + done.stderr
