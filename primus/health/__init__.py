"""Whether nodes are fit for a training: what is measured on them, and what it means.

One file per check. `verdict` turns measurements into findings; it measures nothing itself.
"""
