"""Finding and reading a dataset: its files, splits, labels and images."""
