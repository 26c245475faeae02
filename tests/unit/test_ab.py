"""Tuned against default kernels in a training: the order of segments, the verdict, the refusals.

Segments here are made up; ranks train in tests/pipeline/test_ab_stage.py.
"""

from __future__ import annotations

import json
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_run import RunSpec, arguments, write_run
from trainer_tiny import tiny

from primus import ab, ab_compare, ab_segments
from primus.ab_rank import Stopwatch, _Over
from primus.artifacts.ab import AbManifest, Losses, Segment, worst_numerics
from primus.artifacts.gemm import TunedHeader, TunedRow, save_lines
from primus.artifacts.report import ReportManifest
from primus.artifacts.run import RunIdentity, TrainManifest
from primus.artifacts.steps import ProcessChoice
from primus.config.frozen import StageSettings
from primus.container.spec import Container
from primus.errors import PreemptedError, TrainingError, UserError
from primus.gemm.problem import Problem
from primus.launch import Ranks
from primus.ranks.progress import STACKS
from primus.report import main as report
from primus.reports.inputs import Paths

LOSSES: list[float | None] = [7.5, 7.25, 7.0]


def segment(
    number: int, kernels: Any, seconds: float, losses: list[float | None] = LOSSES
) -> Segment:
    return Segment(
        round=number,
        kernels=kernels,
        seconds=[seconds, seconds * 9, seconds],
        losses=losses,
        served=12 if kernels == "tuned" else 0,
        started_seconds=3.0,
    )


def segments(factor: float, *, rounds: int = 6, noise: float = 0.02, seed: int = 1) -> Any:
    """Rounds in which a step with the tuned kernels takes `factor` of the time, and noise."""
    chance = random.Random(seed)
    return [
        segment(number, kernels, 0.4 * times * chance.gauss(1, noise))
        for number in range(rounds)
        for kernels, times in (("default", 1.0), ("tuned", factor))
    ]


def found(made: list[Segment], **values: Any) -> AbManifest:
    fields: dict[str, Any] = {
        "experiment": "x",
        "key": "k",
        "tuned_sha256": "t",
        "backend": "cpu",
        "winners": 2,
        "environment": {},
        "numerics": "rounding",
        "tolerance": 1e-4,
        "clock": "processor",
        "device": "a device",
        "ranks": 2,
        "nodes": 1,
        "threads": 1,
        "micro_batches": 2,
        "micro_batch_size": 4,
        "seq_length": 256,
        "warm_up_steps": 2,
        "steps_per_segment": 3,
        "rounds": 6,
        "segments": made,
        "libraries": {},
        "code_commit": "c",
        "code_dirty": False,
        "seconds": 100.0,
    }
    return AbManifest(**fields | values)


@pytest.mark.parametrize(
    ("factor", "rounds", "outcome", "words"),
    [
        (0.9, 6, "faster", "the tuned kernels gain 1"),
        (1.1, 6, "slower", "the tuned kernels slow the training down: a step takes 1.0"),
        (1.0, 6, "no difference", "no difference can be told from the noise"),
        (0.97, 9, "faster", "the tuned kernels gain "),
        (0.5, 5, "too few rounds", "too few rounds to tell, 6 are needed: a step takes 0.5"),
    ],
)
def test_a_gain_a_slowdown_and_neither_are_told(factor, rounds, outcome, words) -> None:
    one = found(segments(factor, rounds=rounds, noise=0.01))
    assert one.outcome == outcome
    assert one.in_words.startswith(words)
    assert f"{rounds} rounds" in one.in_words


def test_a_step_that_stands_out_in_a_segment_does_not_count() -> None:
    # Each segment has one step that takes nine times as long.
    assert found(segments(0.9, noise=0.0)).pairs == [pytest.approx((4e5, 3.6e5))] * 6


def test_equal_kernels_are_seldom_called_different() -> None:
    """The level is 0.05; six rounds on the same side come in 1 of 32."""
    outcomes = [found(segments(1.0, seed=seed)).outcome for seed in range(1000)]
    called = 1 - outcomes.count("no difference") / len(outcomes)
    assert 0.01 < called < 0.05
    gains = [found(segments(0.95, seed=seed)).outcome for seed in range(300)]
    assert gains.count("faster") / len(gains) > 0.7
    assert "slower" not in gains


def test_without_segments_the_reason_is_the_result() -> None:
    one = found([], reason="no tuned kernel differs", winners=0)
    assert (one.outcome, one.lines) == ("nothing to compare", ["no tuned kernel differs"])
    assert one.losses.agree is None


def test_kernels_that_served_nothing_and_time_that_was_over_are_told() -> None:
    idle = [one.model_copy(update={"served": 0}) for one in segments(1.0, rounds=2)]
    one = found(idle, stopped="ab.minutes were over after 2 of 6 rounds")
    assert one.lines[1] == "ab.minutes were over after 2 of 6 rounds"
    assert one.lines[-1] == "warning: no product was served by a tuned kernel"


NEAR: list[float | None] = [7.5, 7.25, 7.0001]
FAR: list[float | None] = [7.5, 7.25, 7.1]
SKIPPED: list[float | None] = [7.5, None, 7.0]


@pytest.mark.parametrize(
    ("default", "tuned", "numerics", "tolerance", "agree", "words"),
    [
        ([LOSSES, LOSSES], [LOSSES], "exact", 0.0, True, "bit for bit equal"),
        ([LOSSES, LOSSES], [LOSSES], "rounding", 1e-4, True, "bit for bit equal"),
        ([LOSSES, LOSSES], [NEAR], "rounding", 1e-4, True, "at most 1e-04 is asked of kernels"),
        ([LOSSES, LOSSES], [FAR], "rounding", 1e-4, False, "LOSSES DO NOT AGREE: losses differ"),
        (
            [LOSSES, LOSSES],
            [NEAR],
            "exact",
            0.0,
            False,
            "equality is asked of kernels called exact",
        ),
        ([LOSSES, NEAR], [NEAR], "exact", 0.0, True, "the default kernels' own by 1.4e-05"),
        ([LOSSES, NEAR], [FAR], "exact", 0.0, False, "LOSSES DO NOT AGREE"),
        ([LOSSES, LOSSES], [FAR], "lossy", None, None, "nothing is asked of lossy kernels"),
        ([SKIPPED, SKIPPED], [SKIPPED], "exact", 0.0, True, "bit for bit equal"),
        ([LOSSES, LOSSES], [SKIPPED], "rounding", 1e-4, False, "LOSSES DO NOT AGREE"),
    ],
)
def test_losses_agree_as_the_class_of_the_kernels_says(
    default, tuned, numerics, tolerance, agree, words
) -> None:
    sides = [
        [segment(number, kernels, 1.0, losses) for number, losses in enumerate(rows)]
        for kernels, rows in (("default", default), ("tuned", tuned))
    ]
    judged = Losses.of(sides[0], sides[1], numerics, tolerance)
    assert judged.agree is agree
    assert words in judged.in_words


def row(candidate: str, numerics: Any = "exact") -> TunedRow:
    problem = Problem(m=4, n=4, k=4)
    return TunedRow(
        problem=problem.to_json(),
        text=str(problem),
        calls=1,
        phases={"forward": 1},
        flops=problem.flops,
        default_us=2.0,
        candidate=candidate,
        tuned_us=1.0,
        gain=0.5,
        numerics=numerics,
        reason="",
        others={},
    )


def test_the_worst_kernel_names_the_class_and_the_default_none() -> None:
    assert worst_numerics([row("swap"), row("default", "lossy")], "default") == "exact"
    assert worst_numerics([row("swap"), row("split_k", "rounding")], "default") == "rounding"
    assert worst_numerics([row("x", "lossy"), row("split_k", "rounding")], "default") == "lossy"


def test_a_segment_times_what_comes_after_the_warm_up_and_ends() -> None:
    now, waits, said = [0.0], [], []
    watch = Stopwatch(
        warm_up=2,
        steps=3,
        clock=lambda: now[0],
        wait=lambda: waits.append(now[0]),
        said=lambda phase, iteration: said.append((phase, iteration)),
    )
    watch.loss = lambda: 10.0 - now[0] if now[0] != 3.0 else float("nan")
    for iteration in range(40, 45):
        watch.report("iterate", iteration)
        watch.report("update", iteration)
        now[0] += 1.0 + (iteration == 43)
    with pytest.raises(_Over):
        watch.report("iterate", 45)
    assert watch.seconds == [1.0, 2.0, 1.0]
    assert watch.losses == [9.0, 8.0, None, 5.0, 4.0]
    # The device has to have come to the end of the warm-up, and of the last step.
    assert waits == [2.0, 6.0]
    assert said[-2:] == [("update", 44), ("iterate", 45)]


def tuned_file(path: Path, *rows: TunedRow, **values: Any) -> Path:
    fields: dict[str, Any] = {
        "backend": "replay",
        "stack": {},
        "settings": {},
        "shapes_sha256": "",
        "peak_tflops": {},
        "coverage": 1.0,
        "problems": len(rows),
        "timed": len(rows),
        "winners": sum(one.candidate != "default" for one in rows),
        "failed": 0,
        "default_us": 1.0,
        "tuned_us": 1.0,
        "stopped": "complete",
    }
    save_lines(path, TunedHeader(**fields | values), rows)
    return path


class Starts:
    """Takes the place of the launcher: writes down what it is to start, and leaves a segment.

    Attributes:
        statuses: exit statuses of the next starts; a start that fails leaves nothing.
    """

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.ranks: list[Ranks] = []
        self.limits: list[float] = []
        self.settings: StageSettings | None = None

    def __call__(self, ranks: Ranks, *, limit: float) -> int:
        self.ranks.append(ranks)
        self.limits.append(limit)
        words = self.words()[-1]
        self.settings = StageSettings.load(words["--settings"], "train")
        status = self.statuses.pop(0) if self.statuses else 0
        if status == 0:
            one = segment(int(words["--round"]), self.sides()[-1], 0.4)
            content = {"segment": one.model_dump(), "device": "a device"}
            Path(words["--output"]).write_text(json.dumps(content))
        return status

    def words(self) -> list[dict[str, str]]:
        """Options of each start."""
        return [
            dict(zip(one.arguments[::2], one.arguments[1::2], strict=True)) for one in self.ranks
        ]

    def sides(self) -> list[str]:
        """Whose turn each start was."""
        return ["tuned" if "--tuned" in words else "default" for words in self.words()]


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Starts:
    made = Starts()
    monkeypatch.setattr(ab_segments, "start_ranks", made)
    return made


def comparison(path: Path, **values: Any) -> ab_segments.Comparison:
    directory = path / "segments"
    directory.mkdir()
    fields: dict[str, Any] = {
        "settings": tiny("train"),
        "directory": directory,
        "samples": path / "samples.json",
        "tuned": path / "tuned.jsonl",
        "variables": {"OVERRIDE": "file"},
        "weights": None,
        "rounds": 3,
        "warm_up": 2,
        "steps": 3,
        "deadline": time.monotonic() + 600,
        "over": "the job's time was over",
    }
    return ab_segments.Comparison(**fields | values)


def without_stacks(ranks: Ranks) -> dict[str, str | None]:
    """Its environment, but for where it writes its stacks when it hangs."""
    return {name: value for name, value in ranks.environment.items() if name != STACKS}


def test_each_segment_is_a_launch_and_sides_take_turns(tmp_path: Path, starts: Starts) -> None:
    asked = comparison(tmp_path)
    made = ab_segments.run_segments(asked)
    sides = ["default", "tuned", "tuned", "default", "default", "tuned"]
    assert starts.sides() == sides
    assert [words["--round"] for words in starts.words()] == list("001122")
    assert {(words["--warm-up"], words["--steps"]) for words in starts.words()} == {("2", "3")}
    expected = list(zip((0, 0, 1, 1, 2, 2), sides, strict=True))
    assert [(one.round, one.kernels) for one in made.segments] == expected
    assert (made.device, made.late) == ("a device", False)
    plain = without_stacks(starts.ranks[0])
    for side, ranks in zip(sides, starts.ranks, strict=True):
        assert (ranks.module, ranks.nproc_per_node, ranks.nodes) == ("primus.ab_rank", 1, 1)
        # Only what the tuned result asks for tells the two environments apart.
        own = {"OVERRIDE": "file"} if side == "tuned" else {}
        assert without_stacks(ranks) == {**plain, **own}
    assert not asked.directory.exists()


def test_segments_run_in_the_container_and_on_the_nodes_of_the_training(
    tmp_path: Path, starts: Starts
) -> None:
    inside = {"runtime": "podman", "image": "an/image", "python": "python3"}
    settings = tiny("train", nodes=2, nproc_per_node=2, global_batch_size=16, container=inside)
    ab_segments.run_segments(comparison(tmp_path, settings=settings, rounds=1))
    training = Container.of(settings)
    assert training is not None
    for ranks in starts.ranks:
        assert ranks.container == training
        assert (ranks.nodes, ranks.nproc_per_node, ranks.is_step) == (2, 2, True)


def test_nothing_stays_of_a_segment_and_nobody_is_told(tmp_path: Path, starts: Starts) -> None:
    asked = comparison(tmp_path, rounds=1)
    ab_segments.run_segments(asked)
    own = starts.settings
    assert own is not None
    assert (own.tensorboard, own.wandb_project, own.mlflow_experiment_name) == (False, None, None)
    assert own.eval_iters == 0
    assert own.save_interval > 1e9
    assert own.train_iters > asked.settings.train_iters
    # What decides how it trains is the experiment's own.
    assert own.identity == asked.settings.identity
    for words in starts.words():
        assert Path(words["--run-directory"]).parent == asked.directory


def test_an_incomplete_round_does_not_count(
    tmp_path: Path, starts: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = comparison(tmp_path, deadline=time.monotonic() + 0.6)

    def slow(ranks: Ranks, *, limit: float) -> int:
        assert 0 < limit <= 0.6
        if len(starts.ranks) == 3:
            time.sleep(limit)
            starts.statuses = [-15]
        return starts(ranks, limit=limit)

    monkeypatch.setattr(ab_segments, "start_ranks", slow)
    made = ab_segments.run_segments(late)
    assert [one.round for one in made.segments] == [0, 0]
    assert made.late
    assert starts.sides() == ["default", "tuned", "tuned", "default"]


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (1, TrainingError, "round 1: the ranks with the tuned kernels ended with exit status 1"),
        (143, PreemptedError, "told to stop"),
        (-15, PreemptedError, "told to stop"),
    ],
)
def test_ranks_that_fail_end_it(tmp_path: Path, starts: Starts, status, error, words) -> None:
    starts.statuses = [0, status]
    asked = comparison(tmp_path)
    with pytest.raises(error, match=words):
        ab_segments.run_segments(asked)
    # Their logs are kept.
    assert asked.directory.exists()


@pytest.mark.parametrize(
    ("left", "seconds", "over"),
    [
        (None, 600, "ab.minutes were over"),
        (661.0, 600, "ab.minutes were over"),
        (300.0, 240, "the job's time was over"),
        (40.0, 20, "the job's time was over"),
    ],
)
def test_a_job_that_ends_before_the_minutes_do_is_the_limit(
    left: float | None, seconds: float, over: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds that are complete count; a job that reaches its end leaves nothing."""
    monkeypatch.setattr(ab, "seconds_left", lambda: left)
    now = time.monotonic()
    deadline, what = ab._deadline(10.0)
    assert (what, round(deadline - now)) == (over, seconds)


def test_no_time_for_one_round_is_an_error_that_names_the_key(
    tmp_path: Path, starts: Starts
) -> None:
    with pytest.raises(TrainingError, match=r"^the job's time .* Fix: raise ab\.minutes"):
        ab_segments.run_segments(comparison(tmp_path, deadline=time.monotonic()))
    assert starts.ranks == []


def call(path: Path, tuned: Path, *words: str) -> AbManifest:
    """`python -m primus.ab` on files of a made-up run."""
    paths = write_run(path / "made", RunSpec())
    settings, output = path / "train.json", path / "out/ab.json"
    tiny("train", vocab_size=4096).save(settings)
    ab.main(
        [
            *("--settings", str(settings), "--samples", str(paths.samples)),
            *("--tokenizer", str(paths.tokenizer), "--tuned", str(tuned)),
            *("--output", str(output), *words),
        ]
    )
    assert sorted(p.name for p in output.parent.iterdir()) == ["ab.json", "ab.json.times.jsonl"]
    return AbManifest.load(output)


def test_where_no_kernel_differs_nothing_is_started(
    tmp_path: Path, starts: Starts, capsys: pytest.CaptureFixture[str]
) -> None:
    made = call(tmp_path, tuned_file(tmp_path / "tuned.jsonl", row("default", "lossy")))
    assert starts.ranks == []
    assert made.outcome == "nothing to compare"
    assert (
        "no tuned kernel differs from the default one: nothing to gain" in capsys.readouterr().out
    )


def test_another_environment_of_the_ranks_is_something_to_compare(
    tmp_path: Path, starts: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = ProcessChoice(candidate="plain", environment={"A": "b"}, reason="")
    tuned = tuned_file(tmp_path / "tuned.jsonl", row("default"), process=process)
    monkeypatch.setattr(ab_compare, "activated_and_verified", lambda *_: {"A": "b"})
    made = call(tmp_path, tuned, "--rounds", "2")
    assert starts.sides() == ["default", "tuned", "tuned", "default"]
    assert starts.ranks[1].environment["A"] == "b"
    assert made.environment == {"A": "b"}
    assert (made.numerics, made.tolerance) == ("exact", 0.0)


def test_a_comparison_works_on_a_copy_of_the_result(
    tmp_path: Path, starts: Starts, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = tuned_file(tmp_path / "tuned.jsonl", row("split_k", "rounding"))
    before = sorted(tmp_path.iterdir())
    made = call(tmp_path, tuned, "--rounds", "6", "--steps", "5", "--warm-up", "1")
    assert {w.get("--tuned") for w in starts.words()} == {
        None,
        str(tmp_path / "out/segments/tuned.jsonl"),
    }
    assert set(tmp_path.iterdir()) - set(before) == {
        *(tmp_path / name for name in ("made", "train.json", "out"))
    }
    assert (made.rounds, made.steps_per_segment, made.warm_up_steps) == (6, 5, 1)
    assert (made.numerics, made.tolerance, made.micro_batches) == ("rounding", 1e-4, 2)
    said = capsys.readouterr().out
    assert "round 6 of 6: seconds per step: default 0.4, tuned 0.4" in said
    assert "no difference can be told from the noise: a step takes 1.000 of its time" in said
    assert "all losses of 6 and 6 segments are bit for bit equal" in said


def test_an_experiment_without_tuning_is_refused(tmp_path: Path, starts: Starts) -> None:
    tuned = tuned_file(tmp_path / "tuned.jsonl", stopped="disabled")
    with pytest.raises(UserError, match=r"gemm_tuning.enabled = false.* Fix: write true"):
        call(tmp_path, tuned)
    assert starts.ranks == []


@pytest.mark.parametrize(
    "words",
    [["--rounds", "0"], ["--steps", "-1"], ["--warm-up", "x"], ["--minutes", "nan"]],
)
def test_numbers_that_make_no_sense_are_refused(tmp_path: Path, words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        call(tmp_path, tmp_path / "tuned.jsonl", *words)
    assert ended.value.code == 2


def reported(root: Path, made: AbManifest, **spec: Any) -> tuple[str, str, str]:
    """Outcome and detail of the report's check, and the page."""
    paths = write_run(root, RunSpec(restart=False, **spec))
    train = TrainManifest.load(paths.train)
    identity = RunIdentity.load(paths.train.parent / "run.json")
    own = {"experiment": train.experiment, "key": train.key}
    if made.tuned_sha256 == "t":
        own["tuned_sha256"] = str(identity.tuned_sha256)
    path = root / "ab.json"
    made.model_copy(update=own).save(path)
    with_ab: Paths = replace(paths, ab=path)
    report(arguments(with_ab, root / "report.html"))
    report(["--check", str(root / "report.json")])
    checks = ReportManifest.load(root / "report.json").checks
    (check,) = (one for one in checks if one.name == "Tuned against default")
    return check.outcome, check.detail, (root / "report.html").read_text()


def test_the_report_shows_it(tmp_path: Path) -> None:
    outcome, detail, page = reported(tmp_path, found(segments(0.9, noise=0.001)))
    assert outcome == "ok"
    assert detail.startswith("the tuned kernels gain 11")
    assert "The tuned kernels gain 11" in page
    assert 'href="#ab"' in page
    assert page.count('<th scope="row">6</th>') == 1
    assert "all losses of 6 and 6 segments are bit for bit equal" in page


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (found(segments(1.1)), "slow the training down"),
        (found(segments(0.9), tuned_sha256="other"), "other tuned kernels"),
        (
            found(
                [
                    *segments(0.9, rounds=1),
                    segment(1, "tuned", 1.0, FAR),
                    segment(1, "default", 1.0),
                ]
            ),
            "LOSSES DO NOT AGREE",
        ),
    ],
)
def test_the_report_warns(tmp_path: Path, made: AbManifest, words: str) -> None:
    outcome, detail, _ = reported(tmp_path, made)
    assert outcome == "warning"
    assert words in detail


def test_the_report_says_that_there_was_nothing_to_compare(tmp_path: Path) -> None:
    made = found([], reason=ab_compare.NOTHING, winners=0, device="")
    outcome, _, page = reported(tmp_path, made)
    assert outcome == "ok"
    assert "No tuned kernel differs from the default one: nothing to gain." in page
