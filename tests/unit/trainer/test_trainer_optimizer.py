"""Adam against torch's, and the learning rate against its formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from trainer_tiny import tiny

from primus.trainer.optimizer import FusedAdam, build_scheduler

ADAM = {"lr": 3e-3, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}


def parameters() -> list[torch.nn.Parameter]:
    torch.manual_seed(2)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in ((33, 17), (9,), (4, 4))]


def train(optimizer: torch.optim.Optimizer, params: list[torch.nn.Parameter], steps: int) -> None:
    torch.manual_seed(4)
    for _ in range(steps):
        for param in params:
            param.grad = torch.randn_like(param)
        optimizer.step()


@pytest.mark.parametrize(("fused", "tolerance"), [(True, 0.0), (False, 1e-6)])
def test_adam_equals_that_of_torch(fused: bool, tolerance: float) -> None:
    own, reference = parameters(), parameters()
    train(FusedAdam(own, **ADAM), own, 12)
    train(torch.optim.AdamW(reference, fused=fused, **ADAM), reference, 12)
    start = parameters()
    for ours, theirs, before in zip(own, reference, start, strict=True):
        assert not torch.equal(ours, before)
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_adam_without_decoupled_decay() -> None:
    own, reference = parameters(), parameters()
    train(FusedAdam(own, **ADAM, adam_w_mode=False), own, 12)
    train(torch.optim.Adam(reference, fused=True, **ADAM), reference, 12)
    assert all(torch.equal(a, b) for a, b in zip(own, reference, strict=True))


def test_parameters_without_a_gradient_stay() -> None:
    own = parameters()
    optimizer = FusedAdam(own, **ADAM)
    own[0].grad = torch.ones_like(own[0])
    optimizer.step()
    assert not torch.equal(own[0], parameters()[0])
    assert torch.equal(own[1], parameters()[1])


def test_a_state_goes_on_where_it_was() -> None:
    whole, halves = parameters(), parameters()
    train(FusedAdam(whole, **ADAM), whole, 4)
    train(first := FusedAdam(halves, **ADAM), halves, 2)
    second = FusedAdam(halves, **ADAM)
    second.load_state_dict(first.state_dict())
    torch.manual_seed(4)
    for _ in range(2):  # the gradients of the first half again, to come to those of the second
        [torch.randn_like(param) for param in halves]
    for _ in range(2):
        for param in halves:
            param.grad = torch.randn_like(param)
        second.step()
    assert all(torch.equal(a, b) for a, b in zip(whole, halves, strict=True))


def rates(iterations: int, **changes: Any) -> list[float]:
    """The learning rate that each iteration uses."""
    settings = tiny(lr=1.0, min_lr=0.1, lr_decay_iters=20, train_iters=30, **changes)
    optimizer = FusedAdam(parameters(), **ADAM)
    scheduler = build_scheduler(settings, optimizer)  # type: ignore[arg-type]
    found = []
    for _ in range(iterations):
        found.append(optimizer.param_groups[0]["lr"])
        scheduler.step(increment=settings.global_batch_size)
    return found


def between(share: float) -> float:
    """From min_lr at 0 to lr at 1."""
    return 0.1 + 0.9 * share


@pytest.mark.parametrize("style", ["cosine", "linear", "constant"])
def test_warm_up_is_linear_from_zero(style: str) -> None:
    found = rates(6, lr_decay_style=style, lr_warmup_iters=5)
    assert found == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize("iteration", [5, 9, 13, 20])
def test_cosine(iteration: int) -> None:
    found = rates(30, lr_decay_style="cosine", lr_warmup_iters=5)
    share = (iteration - 5) / 15
    wanted = between(0.5 * (1 + math.cos(math.pi * share)))
    assert found[iteration] == pytest.approx(wanted, rel=1e-12)
    assert found[21:] == pytest.approx([0.1] * 9)


@pytest.mark.parametrize("iteration", [5, 9, 13, 20])
def test_linear(iteration: int) -> None:
    found = rates(30, lr_decay_style="linear", lr_warmup_iters=5)
    assert found[iteration] == pytest.approx(between(1 - (iteration - 5) / 15), rel=1e-12)
    assert found[21:] == pytest.approx([0.1] * 9)


def test_constant() -> None:
    assert rates(30, lr_decay_style="constant", lr_warmup_iters=0) == pytest.approx([1.0] * 30)


@pytest.mark.parametrize(
    ("style", "share"),
    [
        ("linear", lambda done: 1 - done),
        ("cosine", lambda done: 0.5 * (1 + math.cos(math.pi * done))),
        ("minus_sqrt", lambda done: 1 - math.sqrt(done)),
    ],
)
def test_warm_up_stable_decay(style: str, share: Any) -> None:
    changes = {"lr_decay_style": "WSD", "lr_wsd_decay_style": style, "lr_wsd_decay_iters": 8}
    found = rates(30, lr_warmup_iters=2, **changes)
    assert found[2:13] == pytest.approx([1.0] * 11)
    wanted = [between(share((iteration - 12) / 8)) for iteration in range(13, 21)]
    assert found[13:21] == pytest.approx(wanted, rel=1e-12)
    assert found[21:] == pytest.approx([0.1] * 9)


def test_without_its_own_length_the_schedule_follows_train_iters() -> None:
    settings = tiny(lr=1.0, min_lr=0.0, lr_decay_iters=None, train_iters=10, lr_warmup_iters=0)
    settings_long = tiny(lr=1.0, min_lr=0.0, lr_decay_iters=None, train_iters=20, lr_warmup_iters=0)
    found = []
    for chosen in (settings, settings_long):
        optimizer = FusedAdam(parameters(), **ADAM)
        build_scheduler(chosen, optimizer).step(5 * chosen.global_batch_size)  # type: ignore[arg-type]
        found.append(optimizer.param_groups[0]["lr"])
    assert found == pytest.approx([0.5, 0.5 * (1 + math.cos(math.pi / 4))])
