"""The CPU platform, for every unit test of this process."""

from __future__ import annotations

import os
from collections.abc import Iterator

# One thread that compiles kernels; more start a pool of processes that outlives the tests.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import pytest

from primus.trainer.platform import install
from tests.unit.commands import Commands

# Here and not in trainer/: it refuses to come after the first import of megatron, and the tests
# of the data set, which share the process, import it too.
install("cpu")

# Megatron-core and torch warn about themselves in every step; none of it can be acted upon here.
THIRD_PARTY = (
    "ignore:full scope is deprecated:UserWarning",
    "ignore:.*tp_group is None, using default tp group:DeprecationWarning",
    "ignore:MLP requires ffn_hidden_size:DeprecationWarning",
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",
    "ignore:.torch.distributed.(reduce_scatter_tensor|all_gather_into_tensor):FutureWarning",
    "ignore:.load_state_dict. is deprecated:FutureWarning",
    "ignore:torch.distributed is disabled, unavailable or uninit:UserWarning",
    "ignore:Please use DTensor instead:FutureWarning",
)


def pytest_configure(config: pytest.Config) -> None:
    """Add to the named exceptions from "warnings are errors"."""
    for line in THIRD_PARTY:
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    """Where the commands of this project are run, in one process for a file of tests."""
    made = Commands()
    yield made
    made.close()
