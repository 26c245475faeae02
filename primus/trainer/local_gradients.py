"""Whether this rank's own gradients are finite, seen before they are summed with those of others.

Afterwards every rank holds the same numbers. Upstream's check (`check_for_nan_in_grad`) raises on
one rank alone, whose peers then hang, and waits for the device at every bucket. This one keeps the
answers on the device; they are read only when the norm of the sum turns out not to be finite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class LocalGradients:
    """Watches the buckets of the gradients of wrapped chunks; each is read once more.

    With FSDP2 there is nothing to watch: a layer's gradients are summed as they come.

    Args:
        alone: there is no sum over ranks; nothing is watched.
    """

    def __init__(self, chunks: Sequence[Any], *, alone: bool) -> None:
        self._alone = alone
        self._extremes: list[Tensor] = []
        groups = [
            group
            for chunk in ([] if alone else chunks)
            for kind in ("bucket_groups", "expert_parallel_bucket_groups")
            for group in getattr(chunk, kind, ())
        ]
        for group in groups:
            # Called where the backward pass has filled the group, whether or not ranks overlap
            # the sum with it.
            group.start_grad_sync = self._looked_at(group, group.start_grad_sync)
        self._watches = bool(groups)

    def _looked_at(self, group: Any, start: Callable[..., None]) -> Callable[..., None]:
        def look_and_start(*args: Any, **kwargs: Any) -> None:
            for bucket in group.buckets:
                # The only reduction that is as fast as memory, lets NaN through and cannot
                # overflow.
                self._extremes += torch.aminmax(bucket.grad_data)
            start(*args, **kwargs)

        return look_and_start

    def forget(self) -> None:
        """A new iteration begins."""
        self._extremes = []

    def finite(self) -> bool | None:
        """Asked when the sum is not: whether this rank's own were; waits for the device.

        Returns:
            None where that is not known.
        """
        if self._alone:
            return False
        if not self._watches:
            return None
        return not self._extremes or bool(torch.stack(self._extremes).isfinite().all())
