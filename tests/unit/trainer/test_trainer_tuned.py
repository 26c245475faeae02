"""A run in which nothing tuned applies, on any rank, does not go on."""

from __future__ import annotations

from typing import Any

import pytest
from torch import distributed

from primus import train_setup
from primus.artifacts.run import TunedUse
from primus.config.frozen import StageSettings
from primus.errors import TrainingError


class Counted:
    """A tuned result that the library underneath applies."""

    gemm = None

    def __init__(self, **sums: int) -> None:
        zeros = dict.fromkeys(("hits", "defaults", "misses", "rejections"), 0)
        self._use = TunedUse(**(zeros | sums))

    def use(self) -> TunedUse:
        return self._use


def settings(require: bool = True) -> StageSettings:
    return StageSettings.of("train", {"gemm_tuning": {"require": require}})


def ranks(monkeypatch: pytest.MonkeyPatch, *others: Counted) -> None:
    """Other ranks of the job, which say this."""

    def gather(found: list[Any], own: Any) -> None:
        found[:] = [own, *(other.use() for other in others)]

    monkeypatch.setattr(distributed, "get_world_size", lambda: 1 + len(others))
    monkeypatch.setattr(distributed, "all_gather_object", gather)


def test_a_library_that_applied_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks(monkeypatch, Counted(misses=3))
    with pytest.raises(TrainingError, match=r"none of 9 GEMM calls.*gemm_tuning.require to false"):
        train_setup._require_tuned(settings(), Counted(misses=5, rejections=1))
    train_setup._require_tuned(settings(require=False), Counted(misses=5))
    train_setup._require_tuned(settings(), None)


def test_one_rank_with_tuned_problems_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks(monkeypatch, Counted(hits=1))
    train_setup._require_tuned(settings(), Counted(misses=5))
    ranks(monkeypatch, Counted(defaults=1))
    train_setup._require_tuned(settings(), Counted(misses=5))
    use = train_setup.tuned_use(Counted(misses=5))
    assert use is not None
    assert (use.misses, use.defaults) == (5, 1)
