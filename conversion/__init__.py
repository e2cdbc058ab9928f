"""Readers of other people's checkpoints, one for each family of files."""
