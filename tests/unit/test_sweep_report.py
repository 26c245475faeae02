"""The report on a sweep of made-up runs: order, best, noise, what is missing; page, JSON, table."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_report import Page

from primus.artifacts.sweep import SweepManifest
from primus.config.paths import artifact
from primus.config.pipeline import Pipeline
from primus.errors import ConfigError, RunConflictError, UserError
from primus.sweep import main
from tests.unit.compared_runs import EXPERIMENT, REPOSITORY, edit, write_compared
from tests.unit.report_run import RunSpec

# All of it: each test is quick.
pytestmark = pytest.mark.slow

LOSSES = {1e-3: 4.9, 3e-3: 4.31, 9e-3: 4.6}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(REPOSITORY / "configs", tmp_path / "configs")
    return tmp_path


def sweep(grid: dict[str, list[Any]], experiment: str = EXPERIMENT) -> None:
    """Write the sweep `s`; its runs are as long as the made-up ones."""
    values = {"experiment": experiment, "grid": grid | {"train_iters": [600], "hardware": ["cpu"]}}
    Path("configs/sweeps/s.yaml").write_text(json.dumps(values))


def run(final_loss: float, **values: Any) -> Path:
    """A finished run of a point, with noise of its own."""
    seed = sum(json.dumps(values).encode())
    spec = RunSpec(restart=False, train_iters=600, final_loss=final_loss, seed=seed)
    return write_compared(Path.cwd(), values=values | {"train_iters": 600}, spec=spec)


def three() -> list[Path]:
    sweep({"lr": list(LOSSES)})
    return [run(loss, lr=lr) for lr, loss in LOSSES.items()]


def reported(*words: str) -> tuple[SweepManifest, Page, str]:
    """What `python -m primus.sweep s` writes: JSON, page, and the page's text."""
    for old in Path("output/sweeps").rglob("*.*"):
        old.unlink()
    main(["s", *words])
    (page,) = Path("output/sweeps/s").glob("*.html")
    text = page.read_text()
    return SweepManifest.load(page.with_suffix(".json")), Page(text), text


def test_points_stand_in_the_order_of_their_losses(capsys: pytest.CaptureFixture[str]) -> None:
    three()
    found, page, text = reported()
    assert [point.values["lr"] for point in found.points] == [3e-3, 9e-3, 1e-3]
    assert (found.best, found.measure, found.varied) == ("lr=0.003", "validation", ["lr"])
    assert found.same == {"train_iters": 600, "hardware": "cpu"}
    losses = [point.validation_loss for point in found.points]
    assert losses == sorted(losses, key=float)
    assert found.words[0].startswith("Best validation loss: lr=0.003, 4.4")
    assert f"next: lr=0.009, {losses[1] - losses[0]:.3g} higher" in found.words[0]
    assert "lr=0.009 has a training loss 0.271 nats higher than lr=0.003" in found.words[1]
    assert "By their training losses all others differ" in found.words[2]
    best, *others = found.points
    assert best.difference is None
    for point in others:
        assert point.difference is not None
        assert point.difference.mean is not None
        assert point.difference.mean.significant
        assert point.difference.mean.confidence == 0.975, "two are held against the best"
    # Both attempts, two ranks each, as attempt.json has them.
    attempt = json.loads(Path(best.directory, "attempts/001/attempt.json").read_text())
    assert best.wall_seconds == attempt["finished"] - attempt["started"]
    assert best.device_hours == pytest.approx(2 * best.wall_seconds / 3600)
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if line.startswith("0.00")]
    assert [row.split()[0] for row in rows] == ["0.003", "0.009", "0.001"]
    for words in found.words:
        assert words in page.text.replace("\n", " ")
        assert words in out
    assert page.open == []
    assert "script" not in page.tags
    assert all(link.startswith(("#", "var")) for link in page.references)
    assert "<svg" in text
    assert "Final losses over lr." in text
    assert len(page.ids) == len(set(page.ids))


def test_a_point_links_to_its_report() -> None:
    runs = three()
    (runs[0] / "report.html").write_text("<p>a report</p>")
    _, page, _ = reported()
    (link,) = (link for link in page.references if link.startswith(".."))
    assert Path("output/sweeps/s", link).read_text() == "<p>a report</p>"


def test_what_is_missing_is_named_and_hides_nothing() -> None:
    runs = three()
    whole = Path(Pipeline({}).sweep("s").page)
    shutil.rmtree(runs[0])
    (runs[1] / "train.json").unlink()
    edit(runs[1] / "attempts/001/attempt.json", status="failed", reason="rank 1: signal 9")
    found, page, _ = reported()
    assert not whole.exists(), "the page of the whole sweep is Snakemake's"
    assert whole.with_suffix(".partial.html").is_file()
    assert [(point.values["lr"], point.finished) for point in found.points] == [
        (9e-3, True),
        (3e-3, False),
        (1e-3, False),
    ]
    assert [point.state for point in found.points] == [
        "finished",
        "attempt 1 failed, iteration 600 of 600",
        "not begun",
    ]
    assert found.words == [
        "2 of 3 points not finished: lr=0.001, lr=0.003.",
        f"Best validation loss: lr=0.009, {found.points[0].validation_loss:.4g} nats per token; "
        "no other point has finished.",
    ]
    assert "1 of 3 points finished" in page.text
    shutil.rmtree(runs[1])
    run(LOSSES[1e-3], lr=1e-3)
    run(LOSSES[3e-3] + 0.01, lr=3e-3)
    main(["s"])
    assert whole.is_file()
    assert not list(whole.parent.glob("*.partial.*")), "what it has taken the place of"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("cut", "cannot be read: "),
        ("no row", "attempt 1 failed: rank 1: <signal> 9"),
        ("shorter", "finished, iteration 600 of 600"),
    ],
)
def test_a_run_that_cannot_be_counted_is_no_error(damage: str, said: str) -> None:
    runs = three()
    if damage == "cut":
        (runs[0] / "metrics.jsonl").write_text('{"type": "tra')
    elif damage == "no row":
        (runs[0] / "metrics.jsonl").write_text("")
        edit(runs[0] / "attempts/001/attempt.json", status="failed", reason="rank 1: <signal> 9")
    else:
        # It went to another end than the sweep wants.
        settings = json.loads((runs[0] / "train.json").read_text())["settings"]
        edit(runs[0] / "train.json", settings=settings | {"train_iters": 599})
    found, page, text = reported()
    state = found.points[-1].state
    assert said in state
    assert not found.points[-1].finished
    assert found.best == "lr=0.003"
    assert "<signal>" not in text
    assert state in page.text


def test_nothing_trained_yet() -> None:
    sweep({"lr": [1e-3, 2e-3]})
    found, page, _ = reported()
    assert found.words == ["2 of 2 points not finished: lr=0.001, lr=0.002."]
    assert found.best is None
    assert "svg" not in page.tags


def test_noise_is_called_noise() -> None:
    sweep({"lr": [1e-3, 2e-3, 4e-3]})
    for lr, loss in ((1e-3, 4.3), (2e-3, 4.3001), (4e-3, 4.9)):
        run(loss, lr=lr)
    found, _, text = reported()
    near = found.points[1]
    assert {found.best, near.label} == {"lr=0.001", "lr=0.002"}
    assert near.difference is not None
    assert near.difference.mean is not None
    assert not near.difference.mean.significant
    assert "no difference of the training losses can be told" in found.words[1]
    assert found.words[2] == (
        f"Not told apart from {found.best} by their training losses: {near.label}."
    )
    assert "(noise)" in text


def test_two_keys_are_a_table_with_shades() -> None:
    sweep({"global_batch_size": [16, 8], "lr": [1e-3, 2e-3]})
    for number, (batch, lr) in enumerate([(16, 1e-3), (16, 2e-3), (8, 1e-3)]):
        run(4.3 + number / 10, lr=lr, global_batch_size=batch)
    found, page, text = reported()
    assert [point.finished for point in found.points] == [True, True, True, False]
    shades = [int(part.partition("%")[0]) for part in text.split('style="--shade: ')[1:]]
    assert shades[:2] == [0, 0], "the highest loss, and none: batch 8"
    assert shades[2] == 45, "the lowest: batch 16, lr 0.001"
    assert 0 < shades[3] < 45
    assert "Final losses over" not in page.text


def test_values_that_are_no_numbers_and_many_points() -> None:
    styles = ["constant", "linear", "cosine"]
    sweep({"lr_decay_style": styles})
    for number, style in enumerate(styles):
        run(4.3 + number / 10, lr_decay_style=style)
    _, page, _ = reported()
    assert all(style in page.text for style in styles)
    many = [round(1e-3 * (1 + i), 4) for i in range(10)]
    sweep({"lr": many})
    for number, lr in enumerate(many):
        run(4.3 + number / 20, lr=lr)
    found, page, _ = reported()
    assert len(found.points) == 10
    assert "Grey: the points after the first 8" in page.text


def test_without_validation_and_with_other_tokenizers() -> None:
    runs = three()
    for path in runs:
        rows = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
        (path / "metrics.jsonl").write_text("".join(r for r in rows if '"valid"' not in r))
    found, _, _ = reported()
    assert (found.measure, found.best) == ("training", "lr=0.003")
    assert found.words[0].startswith("Best training loss: lr=0.003")
    edit(runs[0] / "run.json", tokenizer_fingerprint="another")
    found, _, _ = reported()
    assert found.best is None
    assert "tokenizers differ" in found.words[0]
    assert all(point.difference is None for point in found.points)


def test_the_command_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    three()
    capsys.readouterr()
    main(["s", "--json", "--output", "here.html"])
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((here / "here.json").read_text())
    planned = Pipeline({}).sweep("s")
    main(["s", "--output", f"{planned.digest}.html", "--config", "{}"])
    with pytest.raises(RunConflictError, match="digest"):
        main(["s", "--output", f"{'0' * 12}.html"])
    with pytest.raises(UserError, match=r"is to be the page. Fix: write here.html"):
        main(["s", "--output", "here.json"])
    with pytest.raises(ConfigError, match=r"no sweep \"t\".*Fix: known: "):
        main(["t"])
    assert Path(artifact(planned.plans[0].stages["train"])).is_file()
