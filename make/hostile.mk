CHAOS_LISTINGS ?= 1000
CHAOS_BULKS ?= 500
EXPORT_HISTORIES ?= 2500

.PHONY: hostile hostile-replies hostile-exports hostile-chaos
hostile: hostile-replies hostile-exports hostile-chaos ## 21,000 hostile responses, 2,500 histories of exports, 1,000 listings and 500 bulk writes with faults on a fifth of all calls; -j2 helps

hostile-replies: $(INSTALLED)
	HYPOTHESIS_PROFILE=thorough $(BIN)/python -m pytest -q -p no:cacheprovider tests/hostile/test_replies.py

hostile-exports: $(INSTALLED)
	EXPORT_HISTORIES=$(EXPORT_HISTORIES) $(BIN)/python -m pytest -q -p no:cacheprovider tests/files/test_export_machine.py

hostile-chaos: $(INSTALLED)
	CHAOS_LISTINGS=$(CHAOS_LISTINGS) CHAOS_BULKS=$(CHAOS_BULKS) $(BIN)/python -m pytest -q -p no:cacheprovider tests/hostile/test_chaos.py tests/hostile/test_bulk_chaos.py
