"""What every test runs under."""

from __future__ import annotations

import os
import signal

from hypothesis import settings

# Before any import of torch: two workers on two cores must not start threads for every core, and a
# test must neither reach a hub nor leave bytecode of generated kernels in the home directory.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# Set by a user's shell, these would change what Snakemake does.
for name in ("SNAKEMAKE_PROFILE", "SNAKEMAKE_OUTPUT_CACHE"):
    os.environ.pop(name, None)
# A shell starts what is to run behind it with SIGINT ignored, and so would be all that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: how long an example takes depends on what else the machine does. In CI the examples
# are the same every time.
settings.register_profile("house", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("house")
