"""Samples in their order: datasets, samplers, streams and loader workers."""
