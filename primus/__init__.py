"""Reproducible pretraining with Megatron-core: a Snakemake pipeline with offline GEMM tuning."""

__version__ = "0.1.0"
