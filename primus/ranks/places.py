"""Where in an attempt's logs a node, and a rank on it, has its files."""

from __future__ import annotations


def node_directory(node: int) -> str:
    """The name of a node's part of the logs."""
    return f"node{node:03d}"


def rank_directory(rank: int) -> str:
    """The name of a rank's part of its node's."""
    return f"rank{rank:03d}"
