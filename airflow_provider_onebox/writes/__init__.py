"""Writes that are made at most once: a journal for a single one, a results file for many."""

BEGUN, DONE, REJECTED, UNCERTAIN, NOT_SENT = "begun", "done", "rejected", "uncertain", "not_sent"
"""What a journal or a results file says of a write."""

CUT_OFF = "ended after it began to send and before it noted a result"
