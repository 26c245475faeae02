"""Matrix products in every layout, under the recorder, in a process of their own.

    python -m verbose_calls float32 recorded.json

The libraries log to the standard output; what the recorder saw goes to the file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch.nn import functional as F

from primus.gemm.record import GemmRecorder


def call_all(dtype: torch.dtype) -> None:
    """Each call once, but for the first, which runs three times."""

    def new(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, dtype=dtype)

    a, b, c = new(32, 64), new(64, 48), new(32, 48)
    for _ in range(3):
        torch.mm(a, b)
    torch.mm(a, new(48, 64).t())
    torch.mm(new(64, 32).t(), b)
    torch.mm(new(64, 36).t(), new(48, 64).t())
    torch.mm(new(32, 128)[:, :64], new(64, 56))
    torch.mm(new(32, 256)[:, ::4], new(64, 40))  # no BLAS reads this in place
    torch.mm(a, new(64, 72), out=new(32, 96)[:, :72])
    torch.mm(a, new(64, 80), out=new(80, 32).t())
    c.addmm_(a, b)
    torch.addmm(new(48), a, b)
    torch.addmm(new(32, 96)[:, :88], a, new(64, 88), beta=0.5, alpha=2.0)
    F.linear(new(2, 20, 64), new(48, 64))
    F.linear(new(2, 20, 64), new(48, 64), new(48))
    torch.bmm(new(3, 32, 64), new(3, 64, 48))
    torch.bmm(new(3, 32, 64), new(3, 48, 64).mT)
    torch.bmm(new(3, 64, 32).mT, new(3, 64, 48))
    torch.bmm(new(3, 32, 128)[:, :, :64], new(3, 64, 24))
    torch.bmm(new(32, 3, 64).transpose(0, 1), new(64, 3, 56).transpose(0, 1))
    torch.bmm(new(1, 32, 64).expand(3, 32, 64), new(3, 64, 72))
    torch.baddbmm(new(3, 32, 40), new(3, 32, 64), new(3, 64, 40), beta=0.0, alpha=0.25)
    torch.baddbmm(new(3, 32, 40), new(3, 32, 64), new(3, 64, 40), alpha=0.25)
    torch.mm(new(8, 16), new(16, 24))  # small
    torch.mm(new(1, 64), b)
    torch.mv(a, new(64))  # not a GEMM


def main() -> None:
    """Record, and write what was recorded."""
    dtype, output = getattr(torch, sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    with GemmRecorder() as recorder:
        call_all(dtype)
    found = [[problem.to_json(), calls] for problem, calls in recorder.counts.items()]
    output.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
