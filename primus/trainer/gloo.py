"""One device of gloo for all process groups, where torch makes one for each of them.

A device is a socket that listens and a thread that wakes up a hundred times a second. Megatron-core
makes some twenty groups: of a core's time their threads take 2 %.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from torch.distributed import ProcessGroupGloo, distributed_c10d

from primus.ranks.network import GLOO

# As many as torch gives to each device of a group.
_THREADS_PER_DEVICE = 2


def share_devices() -> None:
    """Have the gloo groups that this process makes from now on use the same devices.

    They are those of the interfaces that GLOO_SOCKET_IFNAME names now, else of this host's name,
    as torch chooses them for a group.
    """
    interfaces = [name for name in os.environ.get(GLOO, "").split(",") if name]
    devices = [ProcessGroupGloo.create_device(interface=name) for name in interfaces]
    _Sharing.devices = devices or [ProcessGroupGloo.create_default_device()]
    distributed_c10d.ProcessGroupGloo = _Sharing  # type: ignore[misc]


class _Kind(type):
    """torch asks of a group that it has made whether it is one of gloo."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, ProcessGroupGloo)


class _Sharing(metaclass=_Kind):
    """Called in the place of torch's class, which it makes a group of."""

    devices: list[Any]

    def __new__(cls, store: Any, rank: int, size: int, timeout: timedelta) -> Any:
        options: Any = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._devices = cls.devices
        options._threads = _THREADS_PER_DEVICE * len(cls.devices)
        options._timeout = timeout
        return ProcessGroupGloo(store, rank, size, options)
