"""Staging and publishing: shards to a local folder, whole or not at all; checkpoints to a URL, marker last."""
