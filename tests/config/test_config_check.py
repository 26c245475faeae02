"""`python -m primus.config check`: experiments and sweeps, all or by name."""

from __future__ import annotations

import pytest
from config_root import EXPERIMENT, Root

from primus.config.__main__ import main
from primus.errors import ConfigError

SWEEP = "experiment: x\ngrid:\n  lr: [1e-3, 2e-3]\n"


@pytest.fixture
def swept(root: Root) -> Root:
    (root.path / "configs/sweeps").mkdir()
    root.write(SWEEP, "configs/sweeps/s.yaml")
    return root


def problems(*words: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        main(["check", *words])
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "1 experiment, 2 sweeps: no mistakes"),
        (["s"], "1 sweep: no mistakes"),
        (["x"], "1 experiment, 1 sweep: no mistakes"),
        (["x", "s", "x", "--config", "seed=3"], "1 experiment, 2 sweeps: no mistakes"),
    ],
)
def test_check_reads_sweeps(
    swept: Root, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    swept.write(SWEEP, "configs/sweeps/x.yaml")
    main(["check", *words])
    assert capsys.readouterr().out == f"{said}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "grid: {lr: [-1.0, 2e-3]}",
            "configs/sweeps/s.yaml:2: lr = -1.0: must be > 0.0 (in the point lr=-1",
        ),
        (
            "grid: {lrr: [1e-3]}",
            "configs/sweeps/s.yaml:2: grid.lrr: unknown key. Fix: did you mean lr",
        ),
        ("grid: {lr: [1e-3", "configs/sweeps/s.yaml:3: not YAML"),
        ("grid: {log_interval: [1, 2]}", "configs/sweeps/s.yaml:2: log_interval: the points "),
        ("grid: {data_path: [[nowhere/*.txt]]}", "configs/sweeps/s.yaml:2: data_path.0 = "),
    ],
)
@pytest.mark.parametrize("words", [[], ["s"]], ids=["all", "by name"])
def test_check_names_a_broken_sweep_once(
    swept: Root, text: str, said: str, words: list[str]
) -> None:
    swept.write(f"experiment: x\n{text}\n", "configs/sweeps/s.yaml")
    (line,) = problems(*words)
    assert line.startswith(said)
    assert line.count("Fix: ") == 1
    main(["check", "x"])


def test_check_says_once_what_is_wrong_with_the_experiment_of_a_sweep(swept: Root) -> None:
    swept.edit("micro_batch_size: 4", "micro_batch_size: 0")
    (line,) = problems()
    assert line.startswith("configs/x.yaml:9: micro_batch_size = 0: ")
    assert problems("x") == [line]
    (of_the_sweep,) = problems("s")
    assert "in the point lr=0.001 and 1 more of configs/sweeps/s.yaml" in of_the_sweep
    swept.write("experiment: x\ngrid: {}\n", "configs/sweeps/s.yaml")
    assert [one.partition(":")[0] for one in problems()] == [
        "configs/x.yaml",
        "configs/sweeps/s.yaml",
    ]


def test_check_knows_no_such_name(swept: Root) -> None:
    swept.write(EXPERIMENT, "configs/long_name.yaml")
    swept.write(SWEEP, "configs/sweeps/long_sweep.yaml")
    assert problems("long_nam", "long_swep", "s") == [
        'configs: there is no experiment or sweep "long_nam". Fix: did you mean long_name?',
        'configs: there is no experiment or sweep "long_swep". Fix: did you mean long_sweep?',
    ]
    swept.write(SWEEP, "configs/sweeps/two words.yaml")
    (line,) = problems()
    assert line.startswith('configs/sweeps/two words.yaml = "two words": is not a name')
