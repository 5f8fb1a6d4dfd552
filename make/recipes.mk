.PHONY: recipes
recipes: $(INSTALLED) ## Run the recipes of docs/recipes against the sandbox, PostgreSQL and DuckDB
	$(BIN)/python -m pytest -q -p no:cacheprovider tests/recipes/run_recipes.py
