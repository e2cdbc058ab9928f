"""A smaller copy of a dataset."""
