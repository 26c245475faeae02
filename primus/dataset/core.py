"""Megatron-core's datasets, imported without the warnings that core gives at every import."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    # That transformer-engine and apex are absent, and torch's own deprecations.
    warnings.simplefilter("ignore")
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder
    from megatron.core.datasets.utils import Split

__all__ = [
    "DType",
    "GPTDataset",
    "GPTDatasetConfig",
    "IndexedDataset",
    "IndexedDatasetBuilder",
    "Split",
]
