"""Which GPU a rank uses."""

from __future__ import annotations

import os
from collections.abc import Callable

from primus.errors import UnavailableError


def take_gpu(lack: Callable[[int], str]) -> None:
    """Use the GPU of this rank's number on its node.

    Args:
        lack: what to say where torch sees so many GPUs, which are too few.

    Raises:
        UnavailableError: there are fewer GPUs than ranks.
    """
    import torch

    number, devices = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= devices:
        raise UnavailableError(lack(devices))
    torch.cuda.set_device(number)
