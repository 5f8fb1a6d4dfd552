CLUSTER := .venv-cluster
CLUSTER_SITES ?= 200

# What 3.3.txt does not pin already: the executors and PostgreSQL.
CLUSTER_NEEDS := apache-airflow-providers-celery apache-airflow-providers-edge3 psycopg2-binary asyncpg

$(CLUSTER)/.installed: $(INSTALLED) constraints/cluster.txt
	$(BIN)/uv venv --quiet --clear --no-project --python $(BIN)/python $(CLUSTER)
	$(BIN)/uv pip install --quiet --python $(CLUSTER)/bin/python -e '.[sandbox]' --group test $(CLUSTER_NEEDS) \
	  -c $(CONSTRAINTS) -c constraints/cluster.txt
	@touch $@

.PHONY: cluster
cluster: $(CLUSTER)/.installed ## Celery and edge workers, CLUSTER_SITES=200 sites, one worker killed; needs Redis and PostgreSQL
	CLUSTER_SITES=$(CLUSTER_SITES) $(CLUSTER)/bin/python -m pytest -q -s -p no:cacheprovider tests/cluster/run_cluster.py

.PHONY: cluster-constraints
cluster-constraints: $(INSTALLED) ## Renew the pins of the cluster beside those of Airflow 3.3
	printf '%s\n' $(CLUSTER_NEEDS) | $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.10 \
	  --no-header --no-annotate - -c $(CONSTRAINTS) -o $(VENV)/cluster.txt
	sort $(CONSTRAINTS) > $(VENV)/pinned.txt
	sort $(VENV)/cluster.txt | comm -23 - $(VENV)/pinned.txt > constraints/cluster.txt
