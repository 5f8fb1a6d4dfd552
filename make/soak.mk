SOAKED := build/soak/2.11.json build/soak/3.3.json

.PHONY: soak
ifdef SHORT
soak: $(INSTALLED) ## Renew 10,000 tokens in a real triggerer and see what grows, half an hour; SHORT=1 takes two minutes
	$(BIN)/python -m benchmarks.soak --short
else
soak: $(INSTALLED) $(VENV_2)/.e2e
	rm -f $(SOAKED)
	$(VENV_2)/bin/python -m benchmarks.soak --results $(word 1,$(SOAKED))
	$(BIN)/python -m benchmarks.soak --results $(word 2,$(SOAKED))
	$(BIN)/python -m benchmarks.soak --report $(SOAKED)
endif
