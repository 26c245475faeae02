"""Tests on a real SLURM, which `make test-slurm` starts."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from lab import Lab


@pytest.fixture
def lab() -> Iterator[Lab]:
    """The cluster, all nodes idle before and after the test."""
    if "SLURM_LAB" not in os.environ:
        pytest.skip("no SLURM here: run make test-slurm")
    here = Lab.here()
    here.wait_ready()
    yield here
    here.cancel_all()
    here.wait_ready()
