"""Writes that are made at most once."""
