"""Ratios against peers that anyone can run: `python -m benchmarks.<name>`."""
