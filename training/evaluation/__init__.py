"""Exact evaluation on any number of ranks."""
