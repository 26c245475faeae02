from __future__ import annotations

from pathlib import Path

import pytest

from primus.config.machine import UnknownDevice, detect_hardware


def write(root: Path, name: str, text: str = "") -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_no_gpu(tmp_path: Path) -> None:
    assert detect_hardware(tmp_path) == "cpu"


@pytest.mark.parametrize(("target", "name"), [("90402", "mi300x")])
def test_amd(tmp_path: Path, target: str, name: str) -> None:
    nodes = "sys/class/kfd/kfd/topology/nodes"
    write(tmp_path, "dev/kfd")
    write(tmp_path, f"{nodes}/0/properties", "cpu_cores_count 96\ngfx_target_version 0\n")
    write(tmp_path, f"{nodes}/1/properties", f"simd_count 1216\ngfx_target_version {target}\n")
    assert detect_hardware(tmp_path) == name
    write(tmp_path, f"{nodes}/1/properties", "gfx_target_version 110000\n")
    with pytest.raises(UnknownDevice, match="110000"):
        detect_hardware(tmp_path)


@pytest.mark.parametrize(
    ("model", "name"), [("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H200", "h200")]
)
def test_nvidia(tmp_path: Path, model: str, name: str) -> None:
    information = "proc/driver/nvidia/gpus/0000:19:00.0/information"
    write(tmp_path, information, f"Model: \t\t {model}\nIRQ: 1\n")
    assert detect_hardware(tmp_path) == name
    write(tmp_path, information, "Model: \t\t NVIDIA L4\n")
    with pytest.raises(UnknownDevice, match="NVIDIA L4"):
        detect_hardware(tmp_path)
