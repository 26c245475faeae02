"""What the ranks of a test job run: they meet, add up, and say who they are."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import distributed


def main() -> None:
    warned = []
    signal.signal(signal.SIGUSR1, lambda number, _: warned.append(number))
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    total = torch.tensor(float(rank))
    distributed.all_reduce(total)
    print(f"rank {rank} on {os.uname().nodename}: sum {total.item():.0f}", flush=True)
    if len(sys.argv) > 1:
        while not warned:
            time.sleep(0.1)
        Path(sys.argv[1]).joinpath(f"warned.{rank}").touch()
        distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
