"""A library's own log as the record of shapes, and as the proof that tuned kernels were used.

The library is a fake of hipBLASLt: there is no AMD GPU here.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from shapes_of_models import settings_of as settings_of_model
from test_shapes import REPOSITORY, dump, write_winners
from trainer_run import settings_of

from primus.artifacts.gemm import load_tuned, save_lines
from primus.config.frozen import StageSettings
from primus.gemm.hipblaslt import dump as hipblaslt
from primus.gemm.hipblaslt.results_file import Entry, Results, save_results
from primus.gemm.shapes import read_shapes
from primus.gemm.stack import Stack
from primus.gemm.tuned import TunedResult
from primus.gemm.verify import verdicts
from primus.shapes_library import dump_by_library
from primus.tune_verify import watched_use

pytestmark = [pytest.mark.pipeline, pytest.mark.slow, pytest.mark.timeout(600)]

FAKE = "fake_hipblaslt_rank"
TWO_RANKS = {"nproc_per_node": 2, "tensor_model_parallel_size": 2}


@pytest.fixture(autouse=True)
def module_of_the_fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks find the fake, and the user's own log settings do not reach them."""
    monkeypatch.setenv("PYTHONPATH", f"{REPOSITORY}:{REPOSITORY / 'tests/pipeline'}")
    monkeypatch.setenv("HIPBLASLT_LOG_LEVEL", "3")


def shapes_settings(**changes: Any) -> StageSettings:
    keys = {"enabled": True, "shapes": "record", "record_iters": 2}
    return settings_of("shapes", **changes, gemm_tuning=keys)


def test_the_log_of_one_of_two_tensor_ranks_is_the_record(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "shapes.jsonl"
    written = dump_by_library(shapes_settings(**TWO_RANKS), output, hipblaslt, rank_module=FAKE)
    header, shapes = read_shapes(output)
    assert header.source == "record"
    assert shapes == written
    traced = {shape.problem: shape.calls for shape in dump(tmp_path, "trace", **TWO_RANKS)}
    found = {shape.problem: shape.calls for shape in shapes}
    unseen = {problem: calls for problem, calls in found.items() if problem not in traced}
    assert traced.items() <= found.items()
    assert [(problem.m, calls) for problem, calls in unseen.items()] == [(48, 1)]
    assert all(shape.phases == {"step": shape.calls} for shape in shapes)
    told = capfd.readouterr().out
    assert f"torch saw {sum(traced.values())} of {sum(found.values())} GEMMs" in told
    assert "only in the library's log: 1 GEMMs: 1 x NN 48x48x48 f32_r x2" in told
    assert "only seen by torch" not in told
    assert "outside the steps: 1 x NN 16x16x16 f32_r" in told


def test_experts_keep_the_dimension_that_varies(tmp_path: Path) -> None:
    settings = settings_of_model("mixtral_8x7B_tiny", {})
    values = settings.as_dict() | {"gemm_tuning": {"record_iters": 2, "shapes": "record"}}
    dump_by_library(StageSettings.of("shapes", values), tmp_path / "s", hipblaslt, rank_module=FAKE)
    _, shapes = read_shapes(tmp_path / "s")
    varying = [(s.problem.transA + s.problem.transB, s.tokens) for s in shapes if s.tokens]
    # Two layers of experts, three products each: 64 tokens, two experts of eight for each.
    assert sorted(varying) == sorted(2 * [("TN", "n"), ("NN", "n"), ("NT", "k")])
    tokens = {s.problem.n if s.tokens == "n" else s.problem.k for s in shapes if s.tokens}
    assert tokens == {64 * 2 // 8}
    assert len(shapes) > len(varying)


def test_a_dump_under_the_override_file_says_what_was_used(tmp_path: Path) -> None:
    shapes = dump(tmp_path, "trace")
    path = tmp_path / "tuned.jsonl"
    write_winners(path, shapes, Stack(backend="hipblaslt", device="fake"))
    header, rows = load_tuned(path)
    chosen = {
        row.text: f"solution_{number}"
        for number, row in enumerate(rows, start=100)
        if row.candidate != "default"
    }
    rows = [row.model_copy(update={"candidate": chosen.get(row.text, "default")}) for row in rows]
    save_lines(path, header, rows)
    lost = max((row for row in rows if row.text in chosen), key=lambda row: row.calls)
    names = ("transA", "transB", "m", "n", "k", "us", "solution_index")
    entries = []
    for row in rows:
        if row.text in chosen and row is not lost:
            problem = {"transA": "N", "transB": "N"} | row.problem
            index = chosen[row.text].removeprefix("solution_")
            values = (*(str(problem[name]) for name in names[:5]), "1.0", index)
            entries.append(Entry(names, values))
    override = tmp_path / "override.txt"
    save_results(override, Results("fake", tuple(entries)))

    use = watched_use(
        settings_of("train", gemm_tuning={"enabled": True}),
        TunedResult.load(path),
        {"HIPBLASLT_TUNING_OVERRIDE_FILE": str(override)},
        rank_module=FAKE,
    )
    assert use.counted == "verification"
    verdict = {v.problem: v for v in verdicts(rows, use)}
    wanted = {True: len(chosen) - 1, False: 1, None: len(rows) - len(chosen)}
    assert Counter(v.applied for v in verdict.values()) == Counter(wanted)
    assert "ran solution_7 instead" in verdict[lost.text].why
    assert use.rejections == 2 * lost.calls, "two steps"
    assert use.hits == 2 * sum(r.calls for r in rows if r.text in chosen and r is not lost)
