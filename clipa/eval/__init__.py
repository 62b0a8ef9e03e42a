"""Scoring weights: zero-shot classification from prompts, on all ranks."""
