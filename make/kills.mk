KILLS ?= 1000
# Half of the writes on each Airflow.
EACH = $(shell expr $(KILLS) / 2)
RUN_KILLS = -m pytest -q -s -p no:cacheprovider -o faulthandler_timeout=0 tests/kills/run_kills.py

.PHONY: kills
kills: $(CLUSTER)/.installed $(VENV_2)/.e2e ## KILLS=1000 writes of tasks that are killed, on real schedulers; KILLS=60 takes 3 minutes; needs PostgreSQL
	KILLS=$(EACH) $(VENV_2)/bin/python $(RUN_KILLS)
	KILLS=$(EACH) KILLS_DATABASE=postgresql $(CLUSTER)/bin/python $(RUN_KILLS)
