.PHONY: python-3-14
python-3-14: ## Run the matrix's cell for Python 3.14 in a folder with Debian's testing; as root, with debootstrap
	@bash scripts/python_3_14.sh
