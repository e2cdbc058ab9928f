"""A run's settings: their limits and help, the recipe file, the command line."""
