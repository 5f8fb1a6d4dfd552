.PHONY: docs
docs: $(INSTALLED) ## Build the documentation into build/docs and look at it in Chromium; SCREENSHOTS=1 renews its pictures
	@command -v chromium >/dev/null || { echo "make docs needs Chromium: apt-get install chromium" >&2; exit 1; }
	$(BIN)/python -m sphinx -b html -W --keep-going -q -j 2 -d build/doctrees docs build/docs
	$(BIN)/python -m pytest -q -p no:cacheprovider tests/site --site=build/docs $(if $(SCREENSHOTS),--screenshots=docs/images)
