PEERS_VENV := .venv-peers
PEERS_CONSTRAINTS := constraints/peers.txt
PEERS_LOWEST :=
ifeq ($(PEERS),--lowest)
PEERS_VENV := .venv-peers-lowest
PEERS_CONSTRAINTS := constraints/peers-lowest.txt
PEERS_LOWEST := --override $(PEERS_CONSTRAINTS)
endif

# What the suites of requests and urllib3 need, old and new.
PEERS_NEEDS := 'anyio[trio]' h2 'httpbin>=0.10.4' httpx hypercorn pip pyopenssl pysocks pytest pytest-httpbin pytest-mock pytest-socket \
  pytest-timeout quart quart-trio tornado trustme

$(PEERS_VENV)/.installed: $(INSTALLED) $(PEERS_CONSTRAINTS)
	$(BIN)/uv venv --quiet --clear --no-project --python $(BIN)/python $(PEERS_VENV)
	$(BIN)/uv pip install --quiet --python $(PEERS_VENV)/bin/python -e . $(PEERS_NEEDS) -c $(PEERS_CONSTRAINTS) $(PEERS_LOWEST)
	@touch $@

.PHONY: peers
peers: $(PEERS_VENV)/.installed ## Run the suites of requests and urllib3 with our session; PEERS=--lowest: the oldest allowed
	@$(PEERS_VENV)/bin/python scripts/peers.py

# Airflow is there to be imported alone, so any version of it goes with the lowest ones.
PEERS_COMPILE = printf '%s\n' apache-airflow==3.3.2 $(PEERS_NEEDS) | $(BIN)/uv pip compile --quiet --upgrade --universal \
  --python-version 3.10 --no-header --no-annotate pyproject.toml -

.PHONY: peers-constraints
peers-constraints: $(INSTALLED) ## Renew the pins of the suites of others
	$(PEERS_COMPILE) -o constraints/peers.txt
	printf '%s\n' requests==2.32.2 urllib3==2.0.2 tornado==6.2 > $(VENV)/peers.txt
	$(PEERS_COMPILE) --override $(VENV)/peers.txt -o constraints/peers-lowest.txt
