"""What runs on a node's host: the supervisor, an attempt's processes and containers, and the verdict on them."""
