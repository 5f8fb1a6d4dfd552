.PHONY: bench
bench: $(INSTALLED) ## Measure the provider beside its peers; BENCH='--only calls' measures some, --quick tries all of it, --strict can fail
	$(BIN)/python -m benchmarks $(BENCH)
