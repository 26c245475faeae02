"""A machine with stand-ins for AMD's programs: hipblaslt-bench and rocminfo."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from primus.gemm.problem import Problem

DEVICE = "gfx942:sramecc+:xnack-"
UNITS = 304
GIT_VERSION = "de5c1aebb6"
FAKE = Path(__file__).with_name("fake_hipblaslt_bench.py")

_AGENT = """\
*******
Agent {number}
*******
  Name:                    {name}
  Marketing Name:          stand-in
  Device Type:             {kind}
  Compute Unit:            {units}
{isa}"""
_ISA = """\
  ISA Info:
    ISA 1
      Name:                    amdgcn-amd-amdhsa--{device}
"""


def rocminfo_text(gpus: int = 2, device: str = DEVICE, units: int = UNITS) -> str:
    """What rocminfo prints on a machine with a CPU and some GPUs."""
    agents = [_AGENT.format(number=1, name="EPYC", kind="CPU", units=96, isa="")]
    for number in range(gpus):
        agents.append(
            _AGENT.format(
                number=2 + number,
                name=device.partition(":")[0],
                kind="GPU",
                units=units,
                isa=_ISA.format(device=device),
            )
        )
    return "ROCk module is loaded\n" + "".join(agents)


def install(directory: Path, plan: dict[str, Any], *, gpus: int = 2) -> dict[str, str]:
    """Put the stand-ins into `directory`; the variables under which they are found."""
    programs = directory / "bin"
    programs.mkdir(parents=True)
    (directory / "marks").mkdir()
    (directory / "rocminfo.txt").write_text(rocminfo_text(gpus))
    rocminfo = programs / "rocminfo"
    rocminfo.write_text(f"#!/bin/sh\ncat '{directory}/rocminfo.txt'\n")
    rocminfo.chmod(0o755)
    shutil.copy(FAKE, programs / "hipblaslt-bench")
    write_plan(directory, plan)
    return {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "ROCM_PATH": str(directory),
        "FAKE_HIPBLASLT_PLAN": str(directory / "plan.json"),
        "TMPDIR": str(directory),
    }


def write_plan(directory: Path, plan: dict[str, Any]) -> None:
    """Plant times and faults."""
    whole = {
        "git_version": GIT_VERSION,
        "device": DEVICE,
        "units": UNITS,
        "default": 11,
        "log": str(directory / "calls.jsonl"),
        "marks": str(directory / "marks"),
    } | plan
    (directory / "plan.json").write_text(json.dumps(whole))


def calls(directory: Path) -> list[dict[str, Any]]:
    """Every start of the tool: its arguments and its HIP variables, helps apart."""
    path = directory / "calls.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    every = [json.loads(line) for line in lines]
    return [call for call in every if call["argv"] not in (["--help"], ["--version"])]


def problem(k: int = 128, **fields: Any) -> Problem:
    """A bf16 GEMM of its own for each k."""
    return Problem(m=64, n=64, k=k, a_type="bf16_r", **fields)


def solutions(**us: float) -> dict[str, Any]:
    """Planted times: solutions(s11=10.0, s12=8.0)."""
    return {"solutions": {name[1:]: {"us": value} for name, value in us.items()}}
