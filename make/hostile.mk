CHAOS_LISTINGS ?= 1000
CHAOS_BULKS ?= 500
CHAOS_CONVERSATIONS ?= 300
EXPORT_HISTORIES ?= 2500

.PHONY: hostile hostile-replies hostile-exports hostile-chaos
hostile: hostile-replies hostile-exports hostile-chaos ## 21,000 hostile responses, 2,500 histories of exports, 1,000 listings, 500 bulk writes and 300 exports of conversations with faults; -j2 helps

hostile-replies: $(INSTALLED)
	HYPOTHESIS_PROFILE=thorough $(BIN)/python -m pytest -q -p no:cacheprovider tests/hostile/test_replies.py

hostile-exports: $(INSTALLED)
	EXPORT_HISTORIES=$(EXPORT_HISTORIES) $(BIN)/python -m pytest -q -p no:cacheprovider tests/files/test_export_machine.py

hostile-chaos: $(INSTALLED)
	CHAOS_LISTINGS=$(CHAOS_LISTINGS) CHAOS_BULKS=$(CHAOS_BULKS) CHAOS_CONVERSATIONS=$(CHAOS_CONVERSATIONS) $(BIN)/python -m pytest -q -p no:cacheprovider tests/hostile/test_chaos.py tests/hostile/test_bulk_chaos.py tests/hostile/test_outsiders.py
