"""Bytes at a URL: the store, a dataset's manifest, what proves that bytes are its own."""
