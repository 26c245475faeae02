"""Text formats of the GEMM libraries: their logs to and from `Problem`."""
