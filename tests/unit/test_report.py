"""The report stage over whole runs on disk: page, verdict, exit, and what it may not contain."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_run import CHOSEN, RunSpec, arguments, whole_steps, write_run

from primus.artifacts.report import Headline, ReportManifest
from primus.artifacts.steps import Steps
from primus.errors import ArtifactError
from primus.report import main
from primus.reports import inputs as inputs_module
from primus.reports import page as page_module
from primus.reports.budget import phases
from primus.reports.figures import series
from primus.reports.headline import compute_headline
from primus.reports.inputs import Paths, read_inputs
from primus.reports.integrity import Judgement, judge
from primus.reports.verify import verify_checkpoints

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Checks that elements nest, and collects what the tests ask about."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "action", "data", "srcset"):
                self.references.append(value or "")
            if value and "url(" in value:
                self.references += re.findall(r"url\((.*?)\)", value)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if self.open[-1:] != ["style"] else ""


def report(paths: Paths, output: Path, *more: str) -> tuple[Page, ReportManifest]:
    main([*arguments(paths, output), *more])
    return Page(output.read_text()), ReportManifest.load(output.with_suffix(".json"))


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, ReportManifest, Path]:
    root = tmp_path_factory.mktemp("run")
    output = root / "report.html"
    page, manifest = report(write_run(root), output, "--loss-png", str(root / "loss.png"))
    return page, manifest, output


def test_the_page_is_self_contained_and_well_formed(
    full: tuple[Page, ReportManifest, Path],
) -> None:
    page, _, output = full
    assert page.open == []
    assert "script" not in page.tags
    assert page.references
    assert all(reference.startswith("#") for reference in page.references)
    assert {reference[1:] for reference in page.references} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    style = output.read_text().split("</style>")[0]
    assert "@import" not in style
    assert "url(" not in style
    assert output.stat().st_size < 300_000


def test_the_verdict_comes_first_and_the_figures_follow(
    full: tuple[Page, ReportManifest, Path],
) -> None:
    page, manifest, output = full
    assert manifest.verdict == "passed"
    assert page.text.index("Finished and verified") < page.text.index("Validation loss")
    assert "waiting for checkpoints to be written" in page.text
    headline = manifest.headline
    assert f"{headline.validation_loss:.4g}" in page.text
    assert page.tags.count("svg") == 9
    assert "unigram entropy" in page.text
    assert "split_n" in page.text
    assert (output.parent / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_figures_take_their_colours_from_the_page(full: tuple[Page, ReportManifest, Path]) -> None:
    text = full[2].read_text()
    figures = text[text.index("<svg") :]
    assert "var(--blue)" in figures
    assert "font-family" not in figures
    assert (
        re.findall(r"#(?:[0-9a-f]{6})\b(?![^<]*</code>)", figures[: figures.rindex("</svg>")]) == []
    )


def test_missing_optional_parts_leave_their_sections_out(tmp_path: Path) -> None:
    spec = RunSpec(restart=False, validation=False, tuning=False, export=False)
    page, manifest = report(write_run(tmp_path, spec), tmp_path / "report.html")
    assert manifest.verdict == "passed"
    assert "GEMMs" not in page.text.replace("Tuned GEMMs", "")
    assert "Export" not in [word for word in page.text.split("\n") if word == "Export"]
    assert manifest.headline.tuning is None


def test_a_single_row_is_enough_for_a_report(tmp_path: Path) -> None:
    spec = RunSpec(train_iters=1, log_interval=1, save_interval=1, restart=False, validation=False)
    _, manifest = report(write_run(tmp_path, spec), tmp_path / "report.html")
    assert manifest.headline.rows == 1


def test_everything_a_user_or_machine_says_is_escaped(tmp_path: Path) -> None:
    hostile = "</code><script>alert(1)</script>"
    paths = write_run(tmp_path, RunSpec(values={"lr_decay_style": hostile, hostile: 1}))
    train = json.loads(paths.train.read_text())
    train["environment"] |= {"host": hostile, "device": hostile, "variables": {hostile: hostile}}
    edit(paths.train, environment=train["environment"], warnings=[hostile])
    edit(paths.tokenizer, source=hostile)
    attempt = paths.train.parent / "attempts" / "001" / "attempt.json"
    edit(attempt, reason=hostile, host=hostile)
    page, _ = report(paths, tmp_path / "report.html")
    assert "script" not in page.tags
    assert page.text.count(hostile) >= 8


def _drop_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if not 200 < row["iteration"] < 230]


def _cut_end(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["iteration"] < 280]


def _flip_bit(run: Path) -> None:
    shard = run / "checkpoints" / "iter_0000200" / "__0_0.distcp"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)


def _change_run(**values: Any) -> Callable[[Path], None]:
    return lambda run: edit(run / "train.json", **values)


def _change_last_attempt(**values: Any) -> Callable[[Path], None]:
    return lambda run: edit(run / "attempts" / "002" / "attempt.json", **values)


FAULTS: dict[str, tuple[RunSpec, Callable[[Path], None], str]] = {
    "rows missing": (RunSpec(edit_rows=_drop_rows), lambda run: None, "between iterations 200"),
    "end missing": (RunSpec(edit_rows=_cut_end), lambda run: None, "of 300 iterations"),
    "bit flipped": (RunSpec(), _flip_bit, "iter_0000200: __0_0.distcp: BLAKE3"),
    "shard gone": (
        RunSpec(),
        lambda run: (run / "checkpoints/iter_0000100/__1_0.distcp").unlink(),
        "__1_0.distcp: missing",
    ),
    "manifest of another checkpoint": (
        RunSpec(),
        lambda run: edit(run / "checkpoints/iter_0000100/manifest.json", created=0.0),
        "train.json says otherwise",
    ),
    "loss altered": (RunSpec(), _change_run(loss=1.0), "loss 1.0 in train.json"),
    "other data": (RunSpec(), _change_run(data_fingerprint="x"), "the data differ"),
    "FLOPs altered": (RunSpec(), _change_run(flops_per_token=1e6), "TFLOP/s logged"),
    "no checkpoint": (RunSpec(), _change_run(checkpoints=[]), "lists no checkpoint"),
    "not completed": (
        RunSpec(),
        _change_last_attempt(status="preempted", reason="SIGTERM"),
        "Attempt 2 is preempted: SIGTERM",
    ),
    "tuned result replaced": (
        RunSpec(),
        lambda run: (run / "tuned.jsonl").write_text(
            (run / "tuned.jsonl").read_text().replace("split_n", "split_m")
        ),
        "the tuned result differ",
    ),
}


def judged(paths: Paths) -> Judgement:
    inputs = read_inputs(paths)
    return judge(inputs, compute_headline(inputs), math.inf)


@pytest.mark.parametrize("fault", FAULTS)
def test_contradictions_fail(tmp_path: Path, fault: str) -> None:
    spec, break_it, reason = FAULTS[fault]
    paths = write_run(tmp_path, spec)
    assert judged(paths).verdict == "passed" or spec != RunSpec()
    break_it(paths.train.parent)
    judgement = judged(paths)
    assert judgement.verdict == "failed"
    assert reason.lower() in judgement.summary.lower()


def test_a_failed_report_is_written_under_another_name(tmp_path: Path) -> None:
    paths = write_run(tmp_path)
    _flip_bit(paths.train.parent)
    output = tmp_path / "report.html"
    with pytest.raises(ArtifactError, match=r"BLAKE3 .* See .*report\.failed\.html"):
        main(arguments(paths, output))
    assert not output.exists()
    assert not output.with_suffix(".json").exists()
    assert "FAILED integrity" in Page((tmp_path / "report.failed.html").read_text()).text
    assert ReportManifest.load(tmp_path / "report.failed.json").verdict == "failed"


def test_a_good_report_replaces_an_earlier_failed_one(tmp_path: Path) -> None:
    paths = write_run(tmp_path)
    good = paths.train.read_text()
    edit(paths.train, loss=1.0)
    output = tmp_path / "report.html"
    with pytest.raises(ArtifactError):
        main(arguments(paths, output))
    paths.train.write_text(good)
    main(arguments(paths, output))
    assert output.exists()
    assert not (tmp_path / "report.failed.html").exists()


@pytest.mark.parametrize(
    ("spec", "values", "name"),
    [
        (RunSpec(unigram_entropy=4.0), {}, "Learnt"),
        (RunSpec(), {"warnings": ["slow"]}, "Training"),
        (RunSpec(tuning=True), {"tuned": None}, "Tuned GEMMs"),
        (RunSpec(steps=whole_steps(1.06)), {}, "Whole steps"),
    ],
)
def test_warnings_do_not_fail(
    tmp_path: Path, spec: RunSpec, values: dict[str, Any], name: str
) -> None:
    paths = write_run(tmp_path, spec)
    edit(paths.train, **values)
    judgement = judged(paths)
    assert judgement.verdict == "warnings"
    assert [check.name for check in judgement.checks if check.outcome == "warning"] == [name]


def test_beyond_the_hash_limit_sizes_are_compared_newest_hashed_first(tmp_path: Path) -> None:
    paths = write_run(tmp_path)
    inputs = read_inputs(paths)

    def found(limit: float) -> list[tuple[bool, str]]:
        verified = verify_checkpoints(inputs.train, inputs.checkpoints, limit)
        return [(checkpoint.hashed, checkpoint.problem) for checkpoint in verified]

    assert found(50_000) == [(False, ""), (False, ""), (True, "")]
    _flip_bit(paths.train.parent)
    assert found(0)[1] == (False, "")
    assert "BLAKE3" in found(80_000)[1][1]
    (paths.train.parent / "checkpoints" / "iter_0000200" / "__0_0.distcp").write_bytes(b"")
    assert found(0)[1] == (False, "checkpoint iter_0000200: __0_0.distcp has 0 bytes, not 20000")


def test_check_recomputes_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = write_run(tmp_path)
    report(paths, tmp_path / "report.html")
    result = tmp_path / "report.json"
    main(["--check", str(result)])
    assert "every headline figure" in capsys.readouterr().out
    content = json.loads(result.read_text())
    content["headline"]["tokens_per_second"]["median"] += 1
    content["headline"]["tuning"]["saving"] = 0.5
    result.write_text(json.dumps(content))
    with pytest.raises(ArtifactError) as caught:
        main(["--check", str(result)])
    assert "tokens_per_second.median" in str(caught.value)
    assert "tuning.saving" in str(caught.value)


@pytest.mark.parametrize("others", [["--unknown"], ["--output", "page.html"], ["more"]])
def test_check_stands_alone(others: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--check", "nowhere.json", *others])
    assert caught.value.code == 2
    assert f"error: --check: stands alone, without {' '.join(others)}" in capsys.readouterr().err


def test_the_phases_of_a_run_are_found_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def counted(*given: Any) -> Any:
        asked.append(len(given[0]))
        return phases(*given)

    monkeypatch.setattr(inputs_module, "phases", counted)
    report(write_run(tmp_path), tmp_path / "report.html")
    assert asked == [2]


class Undrawn(dict[str, str]):
    """Figures that nobody looks at."""

    def __missing__(self, name: str) -> str:
        return ""


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, Headline]]:
    """The words of a run's section on GEMMs, without their arrangement, and its figures."""
    monkeypatch.setattr(page_module, "draw_figures", lambda *_: Undrawn())

    def section(root: Path, **spec: Any) -> tuple[str, Headline]:
        inputs = read_inputs(write_run(root, RunSpec(**spec)))
        headline = compute_headline(inputs)
        page = page_module.render(inputs, headline, judge(inputs, headline, 0.0))
        words = " ".join(Page(page.replace("<", " <")).text.split())
        start = words.index("A microbatch on one rank makes")
        return words[start : words.index("bit-equal", start)], headline

    return section


def test_whole_steps_are_told_in_words_and_numbers(tmp_path: Path, rendered: Any) -> None:
    text, headline = rendered(tmp_path, steps=whole_steps(0.93), process=CHOSEN)
    assert headline.tuning is not None
    steps = headline.tuning.steps
    assert steps is not None
    assert (steps.rounds, steps.process) == (12, "plain_malloc")
    ratio = steps.contestants["tuned"].ratio
    assert ratio is not None
    assert 0.9 < ratio.low <= ratio.median <= ratio.high < 0.96
    assert ratio.significant
    assert f"With the tuned kernels a step takes {ratio.median:.3f} of its time with" in text
    assert "% shorter" in text
    assert f"{ratio.low:.3f}–{ratio.high:.3f} faster 51" in text
    assert "Ranks start with the C library's malloc as it is : faster by at least 6.1%" in text
    assert "12 steps each" in text


def test_what_a_step_cannot_show_is_not_claimed(tmp_path: Path, rendered: Any) -> None:
    text, _ = rendered(tmp_path, steps=whole_steps(1.0, seed=5))
    assert "The tuned kernels make no difference that these steps could show" in text
    assert "no significant difference" in text
    assert "Ranks start with" not in text
    nothing, _ = rendered(tmp_path / "nothing", steps=whole_steps(0.5), improved=False)
    assert "both of the first two contestants run the same kernels" in nothing
    assert "% shorter" not in nothing
    few, _ = rendered(tmp_path / "few", steps=whole_steps(0.5, rounds=2))
    assert "which needs six rounds: these are the extremes" in few
    assert "no difference that these steps could show" in few


def test_why_no_steps_were_timed(tmp_path: Path, rendered: Any) -> None:
    steps = Steps(clock="wall", threads=2, reason="2 ranks hold one copy of the model")
    text, headline = rendered(tmp_path, steps=steps)
    assert "Whole training steps Not timed: 2 ranks hold one copy of the model." in text
    assert headline.tuning is not None
    assert headline.tuning.steps is None


def test_what_became_of_each_problem_in_the_run(tmp_path: Path, rendered: Any) -> None:
    text, _ = rendered(tmp_path)
    assert "split_n exact tuned, 2,400 calls" in text
    assert "default, 2,400 calls" in text
    assert "not called never called" in text
    assert "960 calls 12 of them with another number of tokens" in text
    assert "1 problem of the run that the tuned result does not have" in text
    assert "NN 64x64x64 f32_r batch=8 77 not in the tuned result" in text


def test_check_recomputes_whole_steps(tmp_path: Path) -> None:
    paths = write_run(tmp_path, RunSpec(steps=whole_steps(0.93), process=CHOSEN))
    report(paths, tmp_path / "report.html")
    result = tmp_path / "report.json"
    main(["--check", str(result)])
    content = json.loads(result.read_text())
    tuned = content["headline"]["tuning"]["steps"]["contestants"]["tuned"]
    tuned["ratio"]["high"] = 0.5
    tuned["median_us"] -= 1
    result.write_text(json.dumps(content))
    with pytest.raises(ArtifactError) as caught:
        main(["--check", str(result)])
    assert "tuning.steps.contestants.tuned.ratio.high" in str(caught.value)
    assert "tuning.steps.contestants.tuned.median_us" in str(caught.value)


def test_check_refuses_inputs_that_changed(tmp_path: Path) -> None:
    paths = write_run(tmp_path)
    report(paths, tmp_path / "report.html")
    metrics = paths.train.parent / "metrics.jsonl"
    text = metrics.read_text()
    metrics.write_text(text.replace('"grad_norm": ', '"grad_norm": 1', 1))
    with pytest.raises(ArtifactError, match="its manifest says"):
        main(["--check", str(tmp_path / "report.json")])


def test_settings_of_another_run_are_refused(tmp_path: Path) -> None:
    paths = write_run(tmp_path)
    edit(paths.stage_settings[-1], key="other")
    with pytest.raises(ArtifactError, match="the settings are of llama3_8B_tiny other"):
        main(arguments(paths, tmp_path / "report.html"))


def test_thinning_keeps_the_range_and_the_last_point() -> None:
    x = [float(i) for i in range(1001)]
    thin = series(x, x)
    assert len(thin.x) <= 400
    assert thin.x[-1] == 1000
    assert thin.low.min() == 0
    assert thin.high.max() == 1000
    assert series([1.0, 2.0], [3.0, None]).mean[0] == 3.0
