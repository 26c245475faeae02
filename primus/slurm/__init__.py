"""Snakemake's jobs on a SLURM cluster: submit one, ask how it is.

`profiles/slurm` names these commands to snakemake-executor-plugin-cluster-generic. They know
nothing of Snakemake but the comment at the head of its job scripts.
"""
