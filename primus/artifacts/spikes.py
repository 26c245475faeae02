"""What a loss spike is, for the run that warns of it and for the report that lists it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from statistics import median

# Losses that a new one is held against. Fewer, and their spread is itself a guess; more, and the
# fall of the loss at the start of a run hides a spike.
SPIKE_WINDOW = 16
# Above their median by this much at least: less does not disturb a training.
SPIKE_NATS = 0.5
# And by this many deviations, so that a noisy run (small batches) does not warn all the time.
SPIKE_DEVIATIONS = 8.0
# The median absolute deviation of a normal distribution, times this, is its standard deviation.
_NORMAL = 1.4826


class Spikes:
    """Losses of one run, in their order.

    Args:
        before: of the iterations before, the oldest first.
    """

    def __init__(self, before: Iterable[float] = ()) -> None:
        self._window: deque[float] = deque(maxlen=SPIKE_WINDOW)
        self._above = False
        for loss in before:
            self.begins(loss)

    def begins(self, loss: float) -> float | None:
        """Take the next loss.

        Returns:
            where a spike begins with it, the median that it stands above; a spike that goes on
            begins no second one.
        """
        middle, before = self._middle(), self._above
        self._above = middle is not None and loss - middle > self._bound(middle)
        self._window.append(loss)
        return middle if self._above and not before else None

    def _middle(self) -> float | None:
        return median(self._window) if len(self._window) == SPIKE_WINDOW else None

    def _bound(self, middle: float) -> float:
        deviation = _NORMAL * median(abs(loss - middle) for loss in self._window)
        return max(SPIKE_NATS, SPIKE_DEVIATIONS * deviation)
