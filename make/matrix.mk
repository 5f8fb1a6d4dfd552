.PHONY: matrix
matrix: $(INSTALLED) ## Run the suite with the built wheel on every supported Airflow; CELLS='3.0 3.4/3.13' for some
	@$(BIN)/python scripts/matrix.py $(CELLS)

# Airflow 3.0 to 3.2 put no upper bounds on FastAPI, Cadwyn and others, and do not run with those of today: they
# get what there was when they were released. The lowest cell gets the lower bounds of pyproject.toml, and the
# rest from the time of Airflow 2.11.0. Only common-compat is younger than the Airflows.
COMPAT := apache-airflow-providers-common-compat
PINS = $(BIN)/uv pip compile --quiet --upgrade --no-header --no-annotate --python-version 3.10 pyproject.toml --extra sandbox --extra parquet
# Airflow 3.4 runs on Python 3.11 and later. It is a pre-release: each part of it has to be named.
NEXT = $(BIN)/uv pip compile --quiet --upgrade --no-header --no-annotate --universal --python-version 3.11 pyproject.toml --extra sandbox --extra parquet
THEN = --exclude-newer-package $(COMPAT)=$(shell date +%F) --exclude-newer

.PHONY: matrix-constraints
matrix-constraints: $(INSTALLED) ## Renew the pins of Airflow 3.0 to 3.2, of 3.4 and of the lowest versions
	echo 'apache-airflow==3.0.6' > $(VENV)/airflow.txt
	$(PINS) --universal --group test -c $(VENV)/airflow.txt $(THEN) 2025-08-30 -o constraints/3.0.txt
	echo 'apache-airflow==3.1.8' > $(VENV)/airflow.txt
	$(PINS) --universal --group test -c $(VENV)/airflow.txt $(THEN) 2026-03-20 -o constraints/3.1.txt
	echo 'apache-airflow==3.2.2' > $(VENV)/airflow.txt
	$(PINS) --universal --group test -c $(VENV)/airflow.txt $(THEN) 2026-06-15 -o constraints/3.2.txt
	printf '%s\n' apache-airflow==3.4.0b2 apache-airflow-core==3.4.0b2 apache-airflow-task-sdk==1.4.0b2 > $(VENV)/airflow.txt
	$(NEXT) --group e2e -c $(VENV)/airflow.txt -o constraints/3.4.txt
	printf '%s\n' apache-airflow==2.11.0 $(COMPAT)==1.12.0 > $(VENV)/airflow.txt
	$(PINS) --resolution lowest-direct -c $(VENV)/airflow.txt $(THEN) 2025-07-01 -o $(VENV)/lowest.txt
	$(PINS) --group test -c $(VENV)/lowest.txt $(THEN) 2026-11-20 -o constraints/lowest.txt
