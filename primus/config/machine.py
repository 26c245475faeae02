"""Which of configs/hardware this machine is, found without importing torch."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

# LLVM target of the device -> name under configs/hardware.
_AMD = {"90402": "mi300x"}
_NVIDIA = {"H100": "h100", "H200": "h200"}


class UnknownDevice(Exception):
    """There is a GPU, but no file under configs/hardware is known to describe it."""


def detect_hardware(root: Path = Path("/")) -> str:
    """Name of the hardware file for this machine; `cpu` where there is no GPU.

    Args:
        root: where `dev`, `proc` and `sys` are looked for.

    Raises:
        UnknownDevice: the message names the device.
    """
    if (root / "dev/kfd").exists():
        target = _amd_target(root)
        if target not in _AMD:
            raise UnknownDevice(f"AMD GPU with gfx_target_version {target or 'unknown'}")
        return _AMD[target]
    device = _nvidia_device(root)
    if device is None:
        return "cpu"
    for part, name in _NVIDIA.items():
        if part in device:
            return name
    raise UnknownDevice(device)


def _amd_target(root: Path) -> str:
    nodes = sorted(root.glob("sys/class/kfd/kfd/topology/nodes/*/properties"))
    for properties in nodes:
        for line in properties.read_text(encoding="ascii", errors="replace").splitlines():
            name, _, value = line.partition(" ")
            if name == "gfx_target_version" and value.strip() != "0":
                return value.strip()
    return ""


def _nvidia_device(root: Path) -> str | None:
    for information in sorted(root.glob("proc/driver/nvidia/gpus/*/information")):
        for line in information.read_text(encoding="ascii", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "Model":
                return value.strip()
    return _nvidia_smi() if root == Path("/") else None


def _nvidia_smi() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=name", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    names = result.stdout.splitlines() if result.returncode == 0 else []
    return names[0].strip() if names else None
