"""The tables of a report: layout, interruptions, fingerprints, preset, nodes; and page one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from report_run import CHOSEN, RunSpec, arguments, slow_node, whole_steps, write_run
from test_report import Page, edit, report
from test_report_reproduce import run_with

from primus.artifacts.report import ReportManifest
from primus.config.schema.settings import Settings
from primus.errors import ArtifactError
from primus.files import sha256_file
from primus.report import main
from primus.reports.inputs import read_inputs
from primus.reports.preset import preset_differences
from primus.reports.resources import draw_resources
from primus.reports.tables import fingerprints, interruptions, layout
from primus.reports.timeline import draw_timeline

# All of it: each test is quick.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
EVERYTHING = {"queued": True, "experts": True, "steps": whole_steps(0.93), "process": CHOSEN}


def words(page: Path) -> str:
    return " ".join(Page(page.read_text().replace("<", " <")).text.split())


def leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, f"{where}.{name}".strip("."))
    else:
        yield where, value


def changed(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: changed(inner) for name, inner in value.items()}
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return value + 1 if isinstance(value, int) else value * 1.01 + 1e-3


def test_check_finds_a_change_in_each_headline_figure(tmp_path: Path) -> None:
    report(write_run(tmp_path, RunSpec(**EVERYTHING)), tmp_path / "report.html")
    result = tmp_path / "report.json"
    main(["--check", str(result)])
    content = json.loads(result.read_text())
    content["headline"] = changed(content["headline"])
    numbers = [
        name
        for name, value in leaves(content["headline"])
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    assert {"peak_bytes", "device_hours", "experts.busiest", "time_budget.queue"} <= set(numbers)
    result.write_text(json.dumps(content))
    with pytest.raises(ArtifactError) as caught:
        main(["--check", str(result)])
    found = {line.split(": ")[1] for line in str(caught.value).splitlines()}
    assert found == set(numbers)


def test_page_one_says_what_was_reached_and_what_it_took(tmp_path: Path) -> None:
    _, manifest = report(write_run(tmp_path, RunSpec(**EVERYTHING)), tmp_path / "report.html")
    text = words(tmp_path / "report.html")
    assert "✓ finished ✓ 300 of 300 iterations ✓ integrity verified ✓ 0 warnings" in text
    hours = manifest.headline.device_hours
    assert f"Device-hours {hours:.3g} ranks times their hours" in text
    assert f"Effective training {manifest.headline.effective_share:.1%}".replace("%", " %") in text
    tuning = manifest.headline.tuning
    assert tuning is not None
    before, after = (f"{value / 1e3:.3g} ms" for value in (tuning.default_us, tuning.tuned_us))
    assert f"Default kernels {before} Chosen kernels {after}" in text
    assert "Wall time 2 min 33 s 2 attempts, queue included" in text
    assert "Utilisation = 51 MFLOP per token × tokens per second ÷ (2 × peak)" in text


def test_page_one_of_a_failed_run_says_so(tmp_path: Path) -> None:
    paths = write_run(tmp_path, RunSpec(preflight=slow_node()))
    edit(paths.train, loss=1.0)
    with pytest.raises(ArtifactError):
        main(arguments(paths, tmp_path / "report.html"))
    text = words(tmp_path / "report.failed.html")
    assert "✗ 1 check failed ! 1 warning" in text
    assert "integrity verified" not in text


def test_the_layout_is_that_of_the_last_checkpoint(tmp_path: Path) -> None:
    assert layout(read_inputs(write_run(tmp_path))) == [
        ("Ranks", "2: 1 node of 2"),
        ("Tensor parallel", "1"),
        ("Data parallel", "2"),
        ("Sharded over data-parallel ranks", "optimizer state"),
        ("Batch", "16 samples: 4 micro-batches of 2 on each replica"),
        ("Recomputed", "nothing"),
        ("Numbers", "bf16"),
    ]


def test_an_interruption_says_what_it_cost(tmp_path: Path) -> None:
    (one,) = interruptions(read_inputs(write_run(tmp_path, RunSpec(queued=True))))
    assert (one.attempt.number, one.after, one.lost) == (1, 180, 80)
    assert one.lost_seconds == pytest.approx(80 * 0.2, rel=0.1)
    assert (one.queue, one.restart) == (pytest.approx(20), pytest.approx(10))
    # Twenty-five seconds between the attempts, of which twenty in the queue.
    assert one.between == pytest.approx(5)
    assert interruptions(read_inputs(write_run(tmp_path / "other", RunSpec(restart=False)))) == []


def test_fingerprints_are_those_of_the_files(tmp_path: Path) -> None:
    paths = write_run(tmp_path)
    found = {what: value for what, _, value in fingerprints(read_inputs(paths))}
    run = paths.train.parent
    assert found["Metrics"] == sha256_file(run / "metrics.jsonl")
    assert found["Tuned GEMMs"] == sha256_file(run / "tuned.jsonl")
    assert found["Last checkpoint"] == sha256_file(run / "checkpoints/iter_0000300/manifest.json")
    assert found["Export"] == sha256_file(run / "hf/manifest.json")
    assert "Start weights" not in found


def test_the_preset_is_the_models_file_over_the_defaults(tmp_path: Path) -> None:
    inputs = run_with(tmp_path, {"lr": 2e-3, "hidden_size": 64, "ffn_hidden_size": 176})
    found = preset_differences(inputs, ROOT)
    rows = {row.key: row for row in found.rows}
    preset = yaml.safe_load((ROOT / "configs/models/llama3_8B_tiny.yaml").read_text())
    recipe = yaml.safe_load((ROOT / "configs/recipes/tiny.yaml").read_text())
    assert (found.caveat, found.model) == ("", "llama3_8B_tiny")
    assert (rows["hidden_size"].preset, rows["hidden_size"].value) == (preset["hidden_size"], 64)
    assert rows["hidden_size"].source.startswith("--config")
    assert (rows["lr"].preset, rows["lr"].value) == ("–", 2e-3)
    default = Settings.model_fields["log_interval"].default
    assert rows["log_interval"].preset == default != rows["log_interval"].value
    assert rows["log_interval"].source.startswith("configs/recipes/tiny.yaml:")
    assert rows["log_interval"].value == recipe["log_interval"]
    # What the model's file says, and the run does too, is no difference.
    assert not {"num_layers", "rotary_base", "norm_epsilon", "seed", "data_path_to_cache"} & {*rows}
    assert found.compared > 100


def test_without_the_experiments_file_the_preset_is_not_guessed(tmp_path: Path) -> None:
    found = preset_differences(run_with(tmp_path, {}), tmp_path)
    assert found.rows == []
    assert "cannot be read as it is now" in found.caveat


def test_what_preflight_found_is_shown_and_warned_of(tmp_path: Path) -> None:
    spec = RunSpec(preflight=slow_node())
    _, manifest = report(write_run(tmp_path, spec), tmp_path / "report.html")
    (check,) = (check for check in manifest.checks if check.name == "Preflight")
    assert (manifest.verdict, check.outcome) == ("warnings", "warning")
    assert "node2 slow: TFLOP/s, 0.11 TFLOP/s; 2 nodes before attempt 2" in check.detail
    text = words(tmp_path / "report.html")
    assert "Before attempt 2: slow 2 nodes, 2 ranks" in text
    assert "node2 slow 0.11 – 1.2 1480 +0.001 s" in text
    assert "Fix: look at its clocks" in text
    assert any(name.endswith("002/preflight.json") for name in manifest.inputs)


def test_good_nodes_are_no_warning_and_none_is_said_without_a_check(tmp_path: Path) -> None:
    spec = RunSpec(preflight=slow_node().model_copy(update={"findings": []}))
    _, manifest = report(write_run(tmp_path, spec), tmp_path / "report.html")
    assert manifest.verdict == "passed"
    report(write_run(tmp_path / "none"), tmp_path / "none.html")
    assert "Preflight" not in words(tmp_path / "none.html")


def test_a_run_of_an_older_version_has_no_figure_of_what_it_did_not_tell(tmp_path: Path) -> None:
    def older(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        kept = [row for row in rows if row["type"] not in ("memory", "experts")]
        new = ("data_seconds", "expert_load")
        return [{name: row[name] for name in row if name not in new} for row in kept]

    _, manifest = report(write_run(tmp_path, RunSpec(edit_rows=older)), tmp_path / "report.html")
    assert (manifest.verdict, manifest.headline.peak_bytes) == ("passed", None)
    text = words(tmp_path / "report.html")
    assert "Peak memory" not in text
    assert "waiting for samples" not in text
    main(["--check", str(tmp_path / "report.json")])
    assert ReportManifest.load(tmp_path / "report.json").headline.experts is None


def test_figures_of_a_large_run_stay_small(tmp_path: Path) -> None:
    """Sixty attempts, 1024 ranks, 58 layers of 256 experts."""
    inputs = read_inputs(write_run(tmp_path, RunSpec(queued=True, experts=True)))
    curve, (first, *_) = inputs.curve, inputs.attempts
    memory, experts = curve.memory[-1], curve.experts[-1]
    tokens = [[1000 + (7 * layer * expert) % 900 for expert in range(256)] for layer in range(58)]
    layers = list(range(4, 62))
    many = [
        first.model_copy(update={"number": n, "started": 1e5 * n, "finished": 1e5 * n + 9e4})
        for n in range(1, 61)
    ]
    large = replace(
        inputs,
        attempts=many,
        curve=replace(
            curve,
            memory=[memory.model_copy(update={"peak_bytes": [n << 22 for n in range(1024)]})],
            experts=[experts.model_copy(update={"layers": layers, "tokens": tokens})],
        ),
    )
    drawn = draw_timeline(large) | draw_resources(large)
    assert set(drawn) == {"attempts", "attempts-narrow", "memory", "expert-load", "experts"}
    assert {name: len(text) for name, text in drawn.items() if len(text) > 80_000} == {}
    assert "60 failed" in drawn["attempts"]
    assert "20 failed" not in drawn["attempts"]
