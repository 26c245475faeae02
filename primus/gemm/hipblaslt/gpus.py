"""The AMD GPUs of this node: from rocminfo, or from torch where ROCm's programs are not."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from primus.gemm.hipblaslt.tool import rocm_prefix

_SECONDS = 60.0
_VISIBLE = ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")


@dataclass(frozen=True)
class Gpu:
    """One GPU: its architecture with features ("gfx942:sramecc+:xnack-") and compute units."""

    device: str
    units: int


def gpus() -> list[Gpu]:
    """All GPUs of the node in ROCm's order, whatever HIP_VISIBLE_DEVICES says; may be empty."""
    program = shutil.which("rocminfo") or shutil.which(rocm_prefix() / "bin" / "rocminfo")
    if program is None:
        return _of_torch()
    try:
        done = subprocess.run(
            [program], capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return []
    return parse_rocminfo(done.stdout)


def parse_rocminfo(text: str) -> list[Gpu]:
    """The GPUs among rocminfo's agents."""
    found: list[Gpu] = []
    for agent in re.split(r"^Agent \d+\s*$", text, flags=re.MULTILINE)[1:]:
        if not re.search(r"^\s*Device Type:\s+GPU\s*$", agent, re.MULTILINE):
            continue
        isa = re.search(r"\bamdgcn-amd-amdhsa--(gfx\S+)", agent)
        name = re.search(r"^\s*Name:\s+(gfx\S+)", agent, re.MULTILINE)
        units = re.search(r"^\s*Compute Unit:\s+(\d+)", agent, re.MULTILINE)
        device = isa or name
        if device and units:
            found.append(Gpu(device[1], int(units[1])))
    return found


def _of_torch() -> list[Gpu]:
    """In a process that sees all of them; numbering must not depend on what is hidden here."""
    command = [sys.executable, "-m", "primus.gemm.hipblaslt.gpus"]
    env = {name: value for name, value in os.environ.items() if name not in _VISIBLE}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=False, env=env
        )
    except subprocess.TimeoutExpired:
        return []
    return [Gpu(*each) for each in json.loads(done.stdout)] if done.returncode == 0 else []


def _main() -> None:
    """Print architecture and compute units of torch's GPUs."""
    import torch

    count = torch.cuda.device_count() if torch.version.hip is not None else 0
    every = (torch.cuda.get_device_properties(i) for i in range(count))
    print(json.dumps([[str(p.gcnArchName), int(p.multi_processor_count)] for p in every]))


def visible(count: int) -> list[str]:
    """The devices that HIP may use of `count`, as HIP_VISIBLE_DEVICES spells them.

    HIP reads its own variable before CUDA's; an entry that is no device hides the ones after it.
    """
    named = next((os.environ[name] for name in _VISIBLE if name in os.environ), None)
    if named is None:
        return [str(number) for number in range(count)]
    entries: list[str] = []
    for entry in (text.strip() for text in named.split(",")):
        if not (entry.startswith("GPU-") or (entry.isdigit() and int(entry) < count)):
            break
        entries.append(entry)
    return entries


def only(entry: str) -> Mapping[str, str]:
    """Variables under which HIP sees one device."""
    return {"HIP_VISIBLE_DEVICES": entry} | (
        {"CUDA_VISIBLE_DEVICES": entry} if "CUDA_VISIBLE_DEVICES" in os.environ else {}
    )


if __name__ == "__main__":
    _main()
