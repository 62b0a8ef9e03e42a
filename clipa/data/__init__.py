"""From staged shards to batches: which sample, its bytes, its pixels, its tokens."""
