"""One optimizer step, and what all ranks agree on."""
