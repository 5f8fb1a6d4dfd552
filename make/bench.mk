.PHONY: bench
bench: $(INSTALLED) ## Measure the provider beside its peers; BENCH='--quick --only calls' measures less, --strict can fail
	$(BIN)/python -m benchmarks $(BENCH)
