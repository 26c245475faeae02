"""A step that is not taken leaves everything as it was; who is named for a bad batch."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from test_trainer_checkpoint import Training

from primus.errors import TrainingError
from primus.trainer import loop
from primus.trainer import optimizer as optimizers
from primus.trainer.bad_batch import RouterBiases, skip_or_stop, what_is_wrong
from primus.trainer.not_finite import Origin, _judged, _Own
from primus.trainer.optimizer import take_step

pytestmark = pytest.mark.usefixtures("single_rank", "eager")


def everything(training: Training) -> list[Any]:
    """Parameters, masters, moments, step counts and the state of the loss scale; copies."""
    state = training.state
    parts = state.optimizer.chained_optimizers
    return copy.deepcopy(
        [
            [dict(chunk.named_parameters()) for chunk in state.chunks],
            [part.optimizer.state_dict() for part in parts],
            [part.grad_scaler.state_dict() for part in parts if part.grad_scaler is not None],
        ]
    )


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


KINDS = [
    pytest.param({"use_distributed_optimizer": True}, id="distributed, fp32"),
    pytest.param({"use_distributed_optimizer": False, "bf16": True}, id="plain, bf16"),
    pytest.param({"use_distributed_optimizer": True, "bf16": True}, id="distributed, bf16"),
    pytest.param({"fp16": True, "initial_loss_scale": 256.0}, id="fp16"),
    pytest.param({"family": "deepseek_v3"}, id="experts"),
]


@pytest.mark.parametrize("own", [True, False], ids=["own Adam", "another Adam"])
@pytest.mark.parametrize("changes", KINDS)
def test_a_norm_that_is_not_finite_changes_nothing(
    changes: dict[str, Any], own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(**changes)
    training.steps(2)
    if not own:

        class Unknown:
            """No Adam here is one."""

        monkeypatch.setattr(optimizers, "FusedAdam", Unknown)
    before = everything(training)
    # Too large for a norm in float32 though each is finite, so that float16's scaler sees nothing.
    for chunk in training.state.chunks:
        for parameter in chunk.parameters():
            parameter.main_grad.fill_(1e30)
    updated, norm = take_step(training.state.optimizer, 1.0)
    assert not updated
    assert norm == math.inf
    assert equal(everything(training), before)
    for chunk in training.state.chunks:
        for parameter in chunk.parameters():
            parameter.main_grad.fill_(1e-3)
    updated, norm = take_step(training.state.optimizer, 1.0)
    assert updated
    assert norm is not None
    assert not equal(everything(training), before)


@pytest.mark.parametrize("clip_grad", [0.0, 0.1, 1e6])
@pytest.mark.parametrize("changes", KINDS[:2])
def test_a_step_with_another_adam_is_that_of_upstream(
    changes: dict[str, Any], clip_grad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit: `step` of Megatron's optimizer, without the look at the norm."""
    ours, theirs = (Training(clip_grad=clip_grad, **changes) for _ in range(2))
    wanted = theirs.steps(3)

    class Unknown:
        """No Adam here is one."""

    monkeypatch.setattr(optimizers, "FusedAdam", Unknown)
    ours.state.optimizer.step = lambda: take_step(ours.state.optimizer, clip_grad)
    assert ours.steps(3) == wanted
    assert equal(everything(ours), everything(theirs))


def test_biases_of_routers_are_put_back() -> None:
    training = Training(family="deepseek_v3")
    biases = RouterBiases(training.state.chunks)
    training.steps(1)
    before = copy.deepcopy(dict(training.state.chunks[0].named_buffers()))
    names = [name for name in before if name.endswith("expert_bias")]
    assert names
    biases.keep()
    training.steps(1)
    now = dict(training.state.chunks[0].named_buffers())
    assert any(not torch.equal(now[name], before[name]) for name in names)
    biases.put_back()
    assert all(torch.equal(now[name], before[name]) for name in names)


WHERE = Origin(ranks=[1], nodes=["n"], everywhere=False, known=True, sample_ids=[5])


def test_the_bound() -> None:
    said = skip_or_stop(7, "the loss is nan", WHERE, skipped=1, allowed=2)
    assert said == (
        "iteration 7: the loss is nan on rank 1 (n); sample ids 5; its step is skipped, 2 of 2 "
        "that may be"
    )
    with pytest.raises(TrainingError, match=r"nothing was saved, after 2 skipped batches\. .*: 3$"):
        skip_or_stop(9, "the loss is nan", WHERE, skipped=2, allowed=2)


def test_what_is_wrong() -> None:
    assert what_is_wrong(1.0, None) == what_is_wrong(1.0, 2.0) == ""
    assert what_is_wrong(math.nan, None) == "the loss is nan"
    assert what_is_wrong(1.0, math.inf) == "the gradient norm is inf"


def one(rank: int, bad: list[int] | None = None, gradients: bool | None = True) -> _Own:
    ids = [[10 * rank, 10 * rank + 1], [10 * rank + 2, 10 * rank + 3]]
    return _Own(
        rank=rank, node=f"n{rank}", replica=rank, ids=ids, bad=bad or [], gradients=gradients
    )


@pytest.mark.parametrize(
    ("told", "said"),
    [
        # The micro-batch is known.
        ([one(0), one(1, [1], False)], "on rank 1 (n1); sample ids 12, 13"),
        # The gradients of a rank with a good loss are those of others, perhaps.
        ([one(0, [], False), one(1, [0], False)], "on rank 1 (n1); sample ids 10, 11"),
        ([one(0), one(1, [], False), one(2)], "on rank 1 (n1); sample ids 10, 11, 12, 13"),
        (
            [one(0), one(1, [0], False), one(2, [1], False)],
            "on ranks 1, 2 (n1, n2); sample ids 10, 11, 22, 23",
        ),
        (
            [one(0, [0]), one(1, [0])],
            "on every data-parallel rank, so perhaps in the weights; sample ids 0, 1, 10, 11",
        ),
        ([one(0, [], False)], "on rank 0 (n0); sample ids 0, 1, 2, 3"),
        (
            [one(0), one(1)],
            "on no rank alone, but in their sum or its norm; sample ids 0, 1, 2, 3, 10, 11, 12, 13",
        ),
        (
            [one(0, [], None)],
            "on a rank that is not known: FSDP2 sums gradients as they come; sample ids 0, 1, 2, 3",
        ),
    ],
)
def test_who_is_named(told: list[_Own], said: str) -> None:
    assert str(_judged(told)) == said


def test_a_line_stays_a_line() -> None:
    many = Origin(
        ranks=list(range(50)),
        nodes=[f"n{n}" for n in range(50)],
        everywhere=False,
        known=True,
        sample_ids=list(range(1000)),
    )
    assert "0, 1, 2, 3, 4, 5, 6, 7 and 42 more (n0, " in str(many)
    assert str(many).endswith("62, 63 and 936 more")


def test_one_rank_exchanges_nothing_to_know_its_own_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU that would be two waits for the device in every iteration."""
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_, **__: pytest.fail("exchanged"))
    numbers = [0.1, 2.0**52 + 1]
    assert loop._sum_over_ranks(torch.tensor(numbers, dtype=torch.float64)) == numbers
