.PHONY: bench figures
bench: $(INSTALLED) ## Measure the provider beside its peers, in about 25 minutes; BENCH='--only calls' measures some, --quick tries all of it, --strict can fail
	$(BIN)/python -m benchmarks $(BENCH)

figures: $(INSTALLED) ## Put the figures of benchmarks/results.md into the pages; a whole make bench does so too
	$(BIN)/python -m benchmarks --pages
