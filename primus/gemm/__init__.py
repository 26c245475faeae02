"""GEMM problems: recording, tuning, and applying what was found."""
