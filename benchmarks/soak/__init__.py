"""Weeks in minutes: a real triggerer and a real task with tokens that live for seconds, and what grows meanwhile."""
