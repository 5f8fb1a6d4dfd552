"""Tests that need no Airflow don't wait for it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

COLLECT = """
import json, sys, pytest
code = pytest.main(["-q", "--collect-only", "-p", "no:cacheprovider", *sys.argv[1:]])
print(json.dumps([code, "airflow" in sys.modules]))
"""


@pytest.mark.parametrize(
    ("arguments", "imports_airflow"),
    [
        (["tests/api/test_client.py", "tests/api/test_transport.py"], False),
        (["tests/api/test_client.py", "tests/api/test_settings.py"], True),
        (["tests/api"], True),
    ],
    ids=["pure", "one of them", "folder"],
)
def test_airflow_is_imported_where_needed(arguments, imports_airflow, request):
    """Files that import only `api`, the errors and the sandbox run without Airflow; any other brings it."""
    done = subprocess.run(
        [sys.executable, "-c", COLLECT, *arguments],
        cwd=request.config.rootpath,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [0, imports_airflow], done.stdout + done.stderr
