"""What NVIDIA's cuBLASLt lacks: a tuner, a file of tuned algorithms, and a library that applies it.

The C++ in `native/` is built by `build`; `tuner` times algorithms, `algo_file` writes what was
chosen, `libprimus_cublaslt.so` is preloaded into training, `use` reads its counters, and `dump`
counts the GEMMs of a run.
"""
