"""What the drivers of the GPUs report of them: memory errors, and clocks held down.

NVIDIA's is asked by `nvidia-smi`, which comes with it; AMD's writes into /sys. Neither needs torch.
A node that cannot be asked has no faults here: the ranks' own checks are the ones that decide.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from primus.artifacts.preflight import Fault, Severity

# As `nvidia-smi --help-query-gpu` names them: the good value, and what another one means.
_FIELDS: dict[str, tuple[str, str, Severity]] = {
    "ecc.errors.uncorrected.volatile.total": ("0", "uncorrected memory errors", "broken"),
    "remapped_rows.pending": ("No", "a memory row waits for a reset to be remapped", "slow"),
    "remapped_rows.failure": ("No", "a memory row could not be remapped", "broken"),
    "clocks_throttle_reasons.hw_slowdown": ("Not Active", "clocks are held down", "slow"),
}
# A field that a card has not.
_ABSENT = ("[N/A]", "N/A", "[Not Supported]", "")


def faults(environment: Mapping[str, str] = os.environ, root: Path = Path("/")) -> list[Fault]:
    """The faults of this node's cards.

    Args:
        environment: of a job: which cards are its own.
        root: where `sys` is looked for.
    """
    return [*_nvidia(environment), *_amd(root)]


def _nvidia(environment: Mapping[str, str]) -> Iterator[Fault]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return
    own = environment.get("CUDA_VISIBLE_DEVICES", "")
    command = [
        program,
        f"--query-gpu=index,{','.join(_FIELDS)}",
        "--format=csv,noheader,nounits",
        *((f"--id={own}",) if own else ()),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        yield Fault(text="nvidia-smi has not answered for 30 s", severity="broken")
        return
    except OSError:
        return
    if done.returncode == 0:
        yield from from_csv(done.stdout)


def from_csv(text: str) -> Iterator[Fault]:
    """The faults in what nvidia-smi prints."""
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        if len(row) != len(_FIELDS) + 1:
            continue
        for value, (good, meaning, severity) in zip(row[1:], _FIELDS.values(), strict=True):
            if value not in (good, *_ABSENT):
                number = f" ({value})" if value.isdigit() else ""
                yield Fault(text=f"GPU {row[0]}: {meaning}{number}", severity=severity)


def _amd(root: Path) -> Iterator[Fault]:
    # One file per block of a card: errors that were not corrected in its first line, those that
    # were in its second (the kernel's amdgpu documentation, RAS).
    for path in sorted(root.glob("sys/class/drm/card*/device/ras/*_err_count")):
        try:
            text = path.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError):
            continue
        found = re.match(r"ue:\s*(\d+)", text)  # codespell:ignore ue
        if found and int(found[1]):
            card, block = path.parts[-4], path.name.removesuffix("_err_count")
            said = f"{card}: uncorrected errors in {block} ({found[1]})"
            yield Fault(text=said, severity="broken")
