"""Bytes at a URL: the store, the manifest of a dataset, and staging. Moves data, nothing else."""
