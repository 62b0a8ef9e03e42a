"""Benchmarks: what they print goes, with machine and date, into docs/benchmarks.md. Imported by nobody."""
