"""Damaged configurations are refused in this project's own words, or mean something."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from config_root import EXPERIMENT, Root
from hypothesis import given
from hypothesis import strategies as st
from primus_files import BASE, MODEL
from primus_files import EXPERIMENT as OF_PRIMUS

from primus import import_config
from primus.config import arguments, pipeline
from primus.config.load import load
from primus.config.sweep import lines
from primus.config.values import from_command_line
from primus.config.yaml_file import parse_yaml
from primus.errors import ConfigError
from tests.unit.damage import ODD, damaged, fuzz, refuses_or_reads

EVERYTHING = (
    EXPERIMENT
    + "env: {NCCL_DEBUG: INFO}\nslurm: {account: me, extra: --nice=3, time: 60}\n"
    + "container: {runtime: none}\nlr_wsd_decay_iters: null\npeak_tflops: {fp32: 1.5}\n"
    + "hf_dataset: null\ndata_version: ${VERSION:2}\n"
)


def plan(root: Path) -> None:
    """As a dry run does it: every key, what each stage asks for, all stages' frozen settings."""
    found = pipeline.Pipeline({}, root).plan("x", "train")
    for stage, made in found.stages.items():
        json.dumps([dict(found.resources(stage)), made.identity, made.extent, made.options])


@pytest.mark.parametrize(
    "file",
    [
        "configs/x.yaml",
        "configs/models/llama3_8B_tiny.yaml",
        "configs/hardware/cpu.yaml",
        "configs/recipes/mine.yaml",
    ],
)
def test_fuzz_files_of_an_experiment(root: Root, file: str) -> None:
    root.write(EVERYTHING)
    if "recipes" in file:
        (root.path / "configs/recipes").mkdir()
        root.write("lr: 1.0e-3\nsplit: 94,5,1\n", file)
        root.write("recipe: mine\n" + EVERYTHING)
    plan(root.path)
    whole = root.read(file).encode()
    path = root.path / file

    @fuzz
    @given(damaged([whole]))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        refuses_or_reads(lambda: plan(root.path))

    check()


SWEEP = b"""\
experiment: x
points: [{lr: 1e-3, slurm: {time: 90}}, {lr: 2.0e-3}, {}]
grid:
  hidden_size: [64, 128]
  gemm_tuning.budget_minutes: [0.1, '${MINUTES:2}']
  env: [{NCCL_DEBUG: INFO}, {}]
max_points: 24
"""


def test_fuzz_files_of_a_sweep(root: Root) -> None:
    path = root.path / "configs/sweeps/s.yaml"
    path.parent.mkdir()

    def plan_all() -> list[str]:
        return lines(pipeline.Pipeline({}, root.path).sweep("s", "train"), root.path)

    # A variable of the ranks makes no other run.
    path.write_bytes(SWEEP.replace(b"  env: [{NCCL_DEBUG: INFO}, {}]\n", b""))
    assert plan_all()[0].startswith("sweep s: 12 points of x, lr, ")

    @fuzz
    @given(damaged([SWEEP, path.read_bytes()]))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        refuses_or_reads(plan_all)

    check()


@fuzz
@given(st.binary(max_size=300) | st.text(max_size=300) | st.sampled_from(ODD))
def test_fuzz_anything_as_yaml(content: bytes | str) -> None:
    refuses_or_reads(lambda: parse_yaml(content, "x.yaml"))


VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
NAMES = ["lr", "train_iters", "env", "slurm", "slurm.time", "gemm_tuning", "data_path", "split"]
NAMES += ["model", "hardware", "recipe", "moe_layer_freq", "peak_tflops.fp32", "a.b.c", "", "."]


@fuzz
@given(given=st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), VALUE, max_size=3))
def test_fuzz_values_of_the_command_line(given: dict[str, Any]) -> None:
    repository = Path(__file__).parents[2]
    refuses_or_reads(lambda: load("llama3_8B_tiny", given, root=repository, stages=()))


@fuzz
@given(
    st.lists(
        st.text(max_size=30)
        | st.builds("{}={}".format, st.sampled_from(NAMES), st.text(max_size=30))
        | damaged([b'{"slurm": {"time": 3}}', b"slurm={time: 3}", b"data_path=[a, b]"]).map(
            lambda content: content.decode(errors="replace")[:2000]
        ),
        max_size=2,
    )
)
def test_fuzz_arguments(given: list[str]) -> None:
    refuses_or_reads(lambda: from_command_line(arguments.overrides(given)))


@pytest.mark.parametrize("file", ["exp.yaml", "llama3_8B_tiny.yaml", "own_base.yaml"])
def test_fuzz_files_of_primus(root: Root, tmp_path: Path, file: str) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    texts = {"exp.yaml": OF_PRIMUS, "llama3_8B_tiny.yaml": MODEL, "own_base.yaml": BASE}
    for name, text in texts.items():
        (folder / name).write_text(text)
    arguments = [str(folder / "exp.yaml"), "--force", "--allow-unknown"]

    @fuzz
    @given(damaged([texts[file].encode()]))
    def check(content: bytes) -> None:
        (folder / file).write_bytes(content)
        refuses_or_reads(lambda: import_config.main(arguments))

    check()


@pytest.mark.parametrize("payload", ["!!python/object/apply:os.system [touch made]", "&a [*a]"])
def test_yaml_that_would_run_code_or_never_end(root: Root, payload: str) -> None:
    root.write(EXPERIMENT + f"data_version: {payload}\n")
    with pytest.raises(ConfigError, match=r"uses the (tag|alias)"):
        load("x", root=root.path, stages=())
    assert not (root.path / "made").exists()
    assert yaml.safe_load(EXPERIMENT)["model"] == "llama3_8B_tiny"
