.PHONY: mutants
mutants: $(INSTALLED) ## Change the package in one place at a time: does a test notice? After make test; MUTANTS='--sample 20 api/client.py'
	@$(BIN)/python scripts/mutants.py $(MUTANTS)
