"""clipa: train CLIP models with few tokens (CLIPA, arXiv 2305.07017) on one machine or a cluster."""

__version__ = "0.1.0"
