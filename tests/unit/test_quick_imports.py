"""While torch and Megatron-core are imported, no garbage is collected; afterwards it is again."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest

from primus.quick_imports import quick_imports


class Cycle:
    """Garbage that only the collector finds, once it is let go."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    yield
    gc.unfreeze()
    assert gc.isenabled()


def test_nothing_is_collected_and_what_was_imported_is_left_alone() -> None:
    frozen = gc.get_freeze_count()
    with quick_imports():
        assert not gc.isenabled()
        kept = Cycle()
    assert gc.isenabled()
    assert gc.get_freeze_count() > frozen
    assert not [one for one in gc.get_objects() if one is kept]


def test_garbage_from_afterwards_is_collected() -> None:
    with quick_imports():
        pass
    gc.collect()
    Cycle()
    assert gc.collect() >= 1


def test_an_import_that_fails_leaves_the_collector_on() -> None:
    with pytest.raises(ImportError), quick_imports():
        raise ImportError("none")
    assert gc.isenabled()


def test_what_starts_ranks_imports_nothing_that_only_they_need() -> None:
    """The stage, and a node's agent before it knows what is wanted."""
    program = (
        "import sys, primus.train, primus.preflight, primus.node, primus.agent, primus.driver\n"
        "heavy = {'torch', 'numpy', 'megatron', 'transformers', 'tokenizers', 'matplotlib'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.slow
def test_a_rank_of_a_training_imports_no_transformers() -> None:
    """It reads tokens; what makes them stays with the stage that does."""
    program = (
        "import importlib, sys\n"
        "from primus.launch import trainer_imports\n"
        "for name in trainer_imports('cpu'): importlib.import_module(name)\n"
        "unused = {'transformers', 'tokenizers', 'matplotlib', 'snakemake', 'pandas', 'scipy'}\n"
        "assert not unused & sys.modules.keys(), unused & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True)
