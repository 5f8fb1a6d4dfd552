# Needs make, git and Python 3.10 or later. Everything else is installed into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
CONSTRAINTS := constraints/3.3.txt

# Airflow starts twice as fast then; uv leaves it to the first start, which may not write it.
export UV_COMPILE_BYTECODE := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help: ## List the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1 \2/p' $(sort $(MAKEFILE_LIST)) | while read -r name text; do printf '%-12s %s\n' "$$name" "$$text"; done

$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "$(PYTHON) is missing or older than Python 3.10; name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv -c $(CONSTRAINTS)
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[sandbox,parquet]' --group e2e --group bench --group lineage --group agents --group frames --group docs --group lint --group build -c $(CONSTRAINTS)
	@touch $@

.PHONY: install
install: $(INSTALLED) ## Make the environment in .venv, or bring it up to date

.PHONY: demo
demo: $(INSTALLED) ## Run the example DAG in a real Airflow against a local Onebox; KEEP=1 keeps both, SANDBOX='...' goes to the latter
	@$(BIN)/python scripts/demo.py $(if $(KEEP),--keep) $(SANDBOX)

# Where this variable says not to write bytecode, every process of the suite would compile the package and the tests.
.PHONY: test
test: export PYTHONDONTWRITEBYTECODE :=
test: $(INSTALLED) ## Run the whole test suite with branch coverage
	@$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder --junitxml=build/tests.xml
	@$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

.PHONY: check
check: $(INSTALLED) ## Lint, check types and imports, build, and try the built wheel in a separate environment
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	@$(MAKE) --no-print-directory check-workflows check-same-wheel
	rm -rf dist
	$(BIN)/python -m build --installer uv --outdir dist .
	$(BIN)/twine check --strict dist/*
	$(BIN)/python scripts/try_wheel.py dist $(CONSTRAINTS)

.PHONY: house
house: $(INSTALLED) ## Draw the picture of the package's parts, in CONTRIBUTING, from their imports
	$(BIN)/python scripts/house.py

# Pins for the environments of contributors; users are not bound by them. Each echo names the Airflow that
# the rest has to fit.
COMPILE = $(BIN)/uv pip compile --quiet $(UPGRADE) --universal --python-version 3.10 --no-header --no-annotate pyproject.toml --extra sandbox --extra parquet

.PHONY: constraints
constraints: $(INSTALLED) ## Add pins for new dependencies; UPGRADE=--upgrade renews all of them
	echo 'apache-airflow==3.3.2' > $(VENV)/airflow.txt
	$(COMPILE) --group e2e --group bench --group lineage --group agents --group frames --group docs --group lint --group build -c $(VENV)/airflow.txt -o constraints/3.3.txt
	echo 'apache-airflow==2.11.2' > $(VENV)/airflow.txt
	$(COMPILE) --group e2e -c $(VENV)/airflow.txt -o constraints/2.11.txt

include $(sort $(wildcard make/*.mk))

.PHONY: clean
clean: ## Remove what the targets made
	rm -rf $(VENV) .venv-* build dist .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis
