"""Disturbances inside the ranks of a training, which really happen in their forward passes."""

from __future__ import annotations

import json
from typing import Any

from trainer_run import REPOSITORY, Bench, Run

from primus.dataset.order import batch_indices

# Read by every Python of the run; a rank imports the trainer later, before its first iteration.
_HOOK = """
import json, os, sys
if "primus.train_rank" in sys.orig_argv and "DISTURB" in os.environ:
    from primus.ranks.progress import Reporter
    wanted = json.loads(os.environ["DISTURB"])
    say = Reporter.say
    def disturb():
        import time
        import torch
        from primus.trainer import forward_backward
        real = forward_backward._forward
        rank = int(os.environ.get("RANK", "0"))
        def disturbed(batches, model):
            batch = next(batches)
            if rank == wanted.get("slow_rank"):
                time.sleep(wanted["seconds"])
            losses, finish = real(iter([batch]), model)
            if not model.training:
                return losses, finish
            for sample, factor in wanted.get("losses", {}).items():
                at = batch["sample_ids"] == int(sample)
                losses = losses * torch.where(at, float(factor), 1.0)[:, None]
            for sample in wanted.get("gradients", []):
                at = batch["sample_ids"] == sample
                if at.any():
                    losses.register_hook(lambda g, at=at: g.masked_fill(at[:, None], torch.inf))
            return losses, finish
        forward_backward._forward = disturbed
    todo = [disturb]
    def said(self, phase, iteration=-1):
        if phase == "iterate" and todo:
            todo.pop()()
        say(self, phase, iteration)
    Reporter.say = said
"""
BATCH, SEED = 4, 7


def disturbed_run(bench: Bench, name: str, disturbance: dict[str, Any], **changes: Any) -> Run:
    """A run whose ranks are disturbed.

    Args:
        disturbance: `losses`: factor by sample id; `gradients`: sample ids whose gradient becomes
            infinite; `slow_rank` sleeps `seconds` in each forward pass.
    """
    hooks = bench.path / "hooks"
    hooks.mkdir(exist_ok=True)
    (hooks / "sitecustomize.py").write_text(_HOOK)
    run = bench.run(name, **changes)
    run.environment = {
        "PYTHONPATH": f"{hooks}:{REPOSITORY}",
        "DISTURB": json.dumps(disturbance),
    }
    return run


def samples_of(size: int, iteration: int, rank: int = 0, ranks: int = 1) -> list[int]:
    """Ids of the samples of a rank in an iteration, in the order of its micro-batches of two."""
    batch = batch_indices((iteration - 1) * BATCH, BATCH, size, SEED).tolist()
    share = BATCH // ranks
    return [int(sample) for sample in batch[rank * share : (rank + 1) * share]]
