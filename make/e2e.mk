# Part of the Makefile. The half on Airflow 2.11 comes first: it leaves a database for the other to migrate.

# Airflow 2.11 runs on Python 3.10 to 3.12.
PYTHON_2 ?= $(PYTHON)
VENV_2 := .venv-2.11

$(VENV_2)/.e2e: $(INSTALLED) constraints/2.11.txt
	$(BIN)/uv venv --quiet --clear --python $(PYTHON_2) $(VENV_2)
	$(BIN)/uv pip install --quiet --python $(VENV_2)/bin/python -e '.[sandbox,parquet]' --group e2e -c constraints/2.11.txt
	@touch $@

.PHONY: e2e
e2e: $(INSTALLED) $(VENV_2)/.e2e ## Drive the pages of Airflow 2.11 and 3.3 in Chromium; SCREENSHOTS=1 renews docs/images
	@command -v chromium >/dev/null || { echo "make e2e needs Chromium: apt-get install chromium" >&2; exit 1; }
	rm -rf build/e2e
	$(VENV_2)/bin/python -m pytest -q -x tests/e2e --handover=build/e2e
	$(BIN)/python -m pytest -q -x tests/e2e --handover=build/e2e $(if $(SCREENSHOTS),--screenshots=docs/images)

# Not in CI: a pre-release changes, and the run takes as long as that of 3.3.
VENV_NEXT := .venv-3.4

$(VENV_NEXT)/.e2e: $(INSTALLED) constraints/3.4.txt
	$(BIN)/uv venv --quiet --clear --python $(PYTHON) $(VENV_NEXT)
	$(BIN)/uv pip install --quiet --python $(VENV_NEXT)/bin/python -e '.[sandbox]' --group e2e -c constraints/3.4.txt
	@touch $@

.PHONY: e2e-next
e2e-next: $(VENV_NEXT)/.e2e ## After make e2e: drive the pages of Airflow 3.4 too; needs Python 3.11 or later
	$(VENV_NEXT)/bin/python -m pytest -q -x tests/e2e --handover=build/e2e
