SOAKED := build/soak/2.11.json build/soak/3.3.json

.PHONY: soak $(SOAKED)
ifdef SHORT
soak: $(INSTALLED) ## Renew 10,000 tokens in a real triggerer and see what grows, 15 minutes; SHORT=1 takes two
	$(BIN)/python -m benchmarks.soak --short
else
# Side by side, each on its own core.
soak: $(INSTALLED) $(VENV_2)/.e2e
	@$(MAKE) --no-print-directory -j2 $(SOAKED)
	$(BIN)/python -m benchmarks.soak --report $(SOAKED)
endif

build/soak/2.11.json: $(VENV_2)/.e2e
	$(VENV_2)/bin/python -m benchmarks.soak --core 0 --results $@
build/soak/3.3.json: $(INSTALLED)
	$(BIN)/python -m benchmarks.soak --core 1 --results $@
