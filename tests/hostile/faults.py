"""Faults that a call can survive, for a fifth of all calls."""

from __future__ import annotations

FAULTS = (
    "drop_before",
    "drop_after",
    {"kind": "status", "status": 429},
    {"kind": "status", "status": 502},
    {"kind": "status", "status": 503},
    "truncated",
    {"kind": "truncated", "variant": "json"},
    "expired",
    "slow",
)
