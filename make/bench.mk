.PHONY: bench
bench: $(INSTALLED) ## Measure the provider beside its peers; BENCH='--quick --only calls' measures less, --strict can fail
	$(BIN)/uv pip install --quiet --python $(BIN)/python --group bench -c $(CONSTRAINTS)
	$(BIN)/python -m benchmarks $(BENCH)
