"""How the agents of a job's nodes meet, and hear of each other's failures: torch's own store.

The first node's agent keeps it. When that node is gone, so is the store, and that is a failure.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from primus.ranks.network import listener

# Nodes of a job start at different times, containers take their time.
_MEET = timedelta(minutes=15)
_LEAVE_SECONDS = 60.0
_POLL_SECONDS = 0.5
# What stands there is why the first that failed did.
_FAILED, _TOLD, _DONE = "agent/failed", "agent/told", "agent/done"


class Meeting:
    """This node's connection to the others.

    Attributes:
        port: where ranks find the store.
        heard: set when another node has failed, or the first one is gone.
        reason: why, once heard.

    Args:
        address: of the first node, numeric; the store listens there and nowhere else.

    Raises:
        OSError: the port is taken (EADDRINUSE).
        RuntimeError: the first node is not reached in time.
    """

    def __init__(self, address: str, port: int, *, node: int, nodes: int) -> None:
        self._node, self._nodes = node, nodes
        if node == 0:
            with listener(address, port, nodes) as bound:
                # By itself the store listens on every interface. It closes what it is given.
                self._store = TCPStore(
                    address,
                    bound.getsockname()[1],
                    is_master=True,
                    timeout=_MEET,
                    wait_for_workers=False,
                    master_listen_fd=bound.detach(),
                )
        else:
            self._store = TCPStore(
                address, port, is_master=False, timeout=_MEET, wait_for_workers=False
            )
        self.port: int = self._store.port
        self.heard = threading.Event()
        self.reason = ""
        if nodes > 1:
            # A thread, so that a network that is cut blocks nobody else.
            threading.Thread(target=self._listen, name="listen", daemon=True).start()

    def tell(self, reason: str) -> None:
        """Have the others hear that this node has failed; returns at once."""
        threading.Thread(target=self._tell, args=(reason,), name="tell", daemon=True).start()

    def wait_told(self, seconds: float) -> None:
        """This node has noted what it saw; wait until all have, but not for long."""
        self._wait(_TOLD, seconds, everywhere=True)

    def leave(self) -> None:
        """The ranks here ended well; the first node keeps the store until all others' have."""
        self._wait(_DONE, _LEAVE_SECONDS, everywhere=False)

    def _wait(self, key: str, seconds: float, *, everywhere: bool) -> None:
        if self._nodes == 1:
            return
        thread = threading.Thread(target=self._count, args=(key, seconds, everywhere), daemon=True)
        thread.start()
        thread.join(seconds + 1)

    def _count(self, key: str, seconds: float, everywhere: bool) -> None:
        end = time.monotonic() + seconds
        with suppress(RuntimeError):
            count = self._store.add(key, 1)
            while (everywhere or self._node == 0) and count < self._nodes:
                if time.monotonic() > end or (not everywhere and self.heard.is_set()):
                    return
                time.sleep(0.1)
                count = self._store.add(key, 0)

    def _tell(self, reason: str) -> None:
        with suppress(RuntimeError):
            if not self._store.check([_FAILED]):
                self._store.set(_FAILED, reason)

    def _listen(self) -> None:
        while True:
            try:
                if self._store.check([_FAILED]):
                    self.reason = self._store.get(_FAILED).decode()
                    break
            except RuntimeError:
                self.reason = "gone"
                break
            time.sleep(_POLL_SECONDS)
        self.heard.set()
