"""While torch and Megatron-core are imported, no garbage is collected; afterwards it is again."""

from __future__ import annotations

import gc
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
