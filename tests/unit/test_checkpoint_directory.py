"""What counts as a checkpoint, and what becomes of damaged ones."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from primus.artifacts.manifest import FileRecord
from primus.artifacts.run import CheckpointManifest
from primus.errors import ArtifactError, CheckpointError
from primus.trainer import checkpoint_directory as directory

KEY = "0123456789ab"


def manifest(iteration: int, source: Path, key: str = KEY) -> CheckpointManifest:
    return CheckpointManifest(
        iteration=iteration,
        consumed_samples=16 * iteration,
        key=key,
        parent=None,
        attempt=1,
        created=0.0,
        world_size=1,
        layout={},
        samples_fingerprint="s",
        tokenizer_fingerprint="t",
        tuned_sha256=None,
        code_commit="c",
        code_dirty=False,
        libraries={},
        files={
            str(path.relative_to(source)): FileRecord.of(path) for path in directory.payload(source)
        },
    )


def write(root: Path, iteration: int, key: str = KEY) -> Path:
    """Publish a checkpoint of two files, one of them in a directory."""
    source = directory.temporary(root, iteration, 1)
    (source / "inner").mkdir(parents=True)
    (source / "common.pt").write_bytes(b"common" * iteration)
    (source / "inner/0.distcp").write_bytes(bytes(range(256)) * 8)
    return directory.publish(root, manifest(iteration, source, key))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)


DAMAGES: list[tuple[str, Callable[[Path], object], str]] = [
    ("flipped bit", lambda c: flip_a_bit(c / "inner/0.distcp"), r"0\.distcp: SHA-256"),
    ("truncated", lambda c: (c / "common.pt").write_bytes(b"c"), r"common\.pt"),
    ("missing", lambda c: (c / "common.pt").unlink(), r"common\.pt"),
    ("stray file", lambda c: (c / "more").write_text("x"), "not in its manifest: more"),
    ("no manifest", lambda c: (c / "manifest.json").unlink(), r"manifest\.json"),
    ("torn manifest", lambda c: tear(c / "manifest.json"), r"manifest\.json"),
    ("empty manifest", lambda c: (c / "manifest.json").write_text(""), r"manifest\.json"),
    ("renamed", lambda c: c.rename(c.with_name("iter_0000009")), "holds iteration 3"),
]


def tear(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_a_published_checkpoint_verifies(tmp_path: Path) -> None:
    path = write(tmp_path, 3)
    assert path == tmp_path / "iter_0000003"
    assert directory.verify(path, KEY).iteration == 3
    assert [p.name for p in tmp_path.iterdir()] == ["iter_0000003"], "nothing temporary is left"


@pytest.mark.fault(
    7,
    8,
    9,
    injected="files cut short, missing, strange; bits flipped; manifests torn",
    observed="each is found before anything is loaded, and named",
)
@pytest.mark.parametrize(
    ("damage", "message"), [d[1:] for d in DAMAGES], ids=[d[0] for d in DAMAGES]
)
def test_damage_is_found_and_named(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    write(tmp_path, 3)
    damage(tmp_path / "iter_0000003")
    (path,) = directory.newest_first(tmp_path)
    with pytest.raises(ArtifactError, match=message):
        directory.verify(path, KEY)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, 3, key="ffffffffffff")
    with pytest.raises(ArtifactError, match="belongs to run ffffffffffff, not to run 0123456789ab"):
        directory.verify(path, KEY)


@pytest.mark.fault(
    9,
    injected="no tracker file at all",
    observed="names and manifests decide",
)
def test_newest_first_by_number_and_by_name_only(tmp_path: Path) -> None:
    for iteration in (2, 10, 12345678):
        write(tmp_path, iteration)
    for other in (".iter_0000011.tmp", "damaged-iter_0000012-0", "iter_13", "iter_0000014x"):
        (tmp_path / other).mkdir()
    (tmp_path / "iter_0000015").write_text("a file")
    found = [path.name for path in directory.newest_first(tmp_path)]
    assert found == ["iter_12345678", "iter_0000010", "iter_0000002"]
    assert directory.newest_first(tmp_path / "none") == []


def test_publishing_sets_a_damaged_one_of_the_same_name_aside(tmp_path: Path) -> None:
    for _ in range(3):
        flip_a_bit(write(tmp_path, 3) / "inner/0.distcp")
    directory.verify(write(tmp_path, 3), KEY)
    aside = sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("damaged-"))
    assert aside == [f"damaged-iter_0000003-{number}" for number in range(3)]


def test_a_failed_rename_is_a_checkpoint_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.rename", refuse)
    with pytest.raises(CheckpointError, match=r"iter_0000003.*Input/output error"):
        write(tmp_path, 3)
    assert directory.newest_first(tmp_path) == []


def test_summarise_leaves_damaged_ones_out_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for iteration in (2, 4, 6):
        write(tmp_path, iteration)
    flip_a_bit(tmp_path / "iter_0000004/inner/0.distcp")
    with caplog.at_level(logging.WARNING):
        found = list(directory.summarise(tmp_path, KEY))
    assert [summary.iteration for summary in found] == [2, 6]
    assert found[0].bytes == 256 * 8 + 12
    assert "iter_0000004" in caplog.text
