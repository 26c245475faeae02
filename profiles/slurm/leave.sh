#!/bin/sh
# Snakemake wants one word here, and ends it after two seconds; Python then goes on for a moment.
python -m primus.slurm.cancel "$@"
