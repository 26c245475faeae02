"""A forged checkpoint, hashes and all, runs no code; one of this project's loads as before."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from test_trainer_checkpoint import ABOUT, Training
from torch.distributed.checkpoint.filesystem import FileSystemReader

from primus import pickles
from primus.errors import ArtifactError, CheckpointError, UserError
from primus.huggingface.checkpoint import CheckpointReader
from primus.trainer import checkpoint_directory
from tests.unit.crafted import WAYS, forge, load_as_torch_does, vouch

pytestmark = pytest.mark.usefixtures("single_rank", "eager")

KEY = str(ABOUT["key"])


@pytest.mark.fault(
    40,
    injected="code in the index, common.pt or an object of a checkpoint, its manifest forged",
    observed="refused before torch unpickles it, in one line; the checkpoint before is loaded",
)
@pytest.mark.parametrize("way", WAYS)
def test_a_forged_checkpoint_runs_nothing(
    root: Path, tmp_path: Path, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    from primus.trainer.checkpoint import load_newest, load_other

    made, (older, newest) = tmp_path / "made", sorted(root.iterdir())
    forge(newest, way, made)
    checkpoint_directory.verify(newest, KEY)
    with pytest.raises(UserError, match="would not load safely") as raised:
        load_other(Training().state, newest, {"tensor_model_parallel_size": 1})
    assert "\n" not in str(raised.value)
    assert load_newest(Training().state, root, KEY) == older.name
    (warned,) = [r.getMessage() for r in caplog.records if "skipping" in r.getMessage()]
    assert "would not load safely" in warned
    assert "\n" not in warned
    assert way == "object in a file elsewhere" or "asks for posix.mkdir" in warned
    shutil.rmtree(older)
    with pytest.raises(CheckpointError, match="none of 1 checkpoints is good"):
        load_newest(Training().state, root, KEY)
    if "index" in way or "elsewhere" in way:
        with pytest.raises(ArtifactError, match="would not load safely"):
            CheckpointReader(newest)
    assert not made.exists()
    load_as_torch_does(newest)
    assert made.exists(), "the payload is a real one"


@pytest.mark.filterwarnings("ignore:Environment variable TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
def test_a_variable_does_not_undo_it(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from primus.trainer.checkpoint import load_newest

    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    older, newest = sorted(root.iterdir())
    forge(newest, "common", tmp_path / "made")
    assert load_newest(Training().state, root, KEY) == older.name
    assert not (tmp_path / "made").exists()


def test_the_index_is_what_torch_reads(root: Path) -> None:
    for directory in root.iterdir():
        theirs = FileSystemReader(directory).read_metadata()
        ours = pickles.read_index(directory)
        assert ours.state_dict_metadata == theirs.state_dict_metadata
        assert ours.storage_data == theirs.storage_data
        assert len(ours.storage_data) > 20


def change_index(directory: Path, **changes: Any) -> None:
    index = pickle.loads((directory / ".metadata").read_bytes())  # noqa: S301
    for place in index.storage_data.values():
        vars(place).update(changes)
    (directory / ".metadata").write_bytes(pickle.dumps(index))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"relative_path": "/etc/passwd"}, "no file of a checkpoint"),
        ({"relative_path": "../x"}, "no file of a checkpoint"),
        ({"relative_path": ""}, "no file of a checkpoint"),
        ({"relative_path": ".."}, "no file of a checkpoint"),
        ({"relative_path": 3}, "no file of a checkpoint"),
        ({"offset": -1}, "no file of a checkpoint"),
        ({"length": -1}, "no file of a checkpoint"),
        ({"length": None}, "would not load safely"),
        ({"transform_descriptors": ["zstd"]}, "does not write"),
        ({"relative_path": "__9_9.distcp"}, "cannot be read"),
    ],
)
def test_places_outside(root: Path, changes: dict[str, Any], why: str) -> None:
    directory = max(root.iterdir())
    change_index(directory, **changes)
    with pytest.raises(ArtifactError, match=why):
        pickles.check(directory)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (".metadata", b""),
        (".metadata", pickle.dumps({})),
        (".metadata", pickle.dumps(os.system)),
        (".metadata", b"cbuiltins\neval\n(Vprint()\ntR."),
        (".metadata", b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f."),
        (".metadata", b"ctorch\nload\n."),
        (".metadata", b"\x80\x04\x8c\x05torch\x8c\x0chub.download\x93."),
        ("common.pt", b""),
        ("common.pt", b"\x80\x02."),
        ("metadata.json", b"["),
        ("metadata.json", b"[" * 100_000),
        ("metadata.json", b'{"sharded_backend": "zarr"}'),
    ],
)
def test_files_that_are_something_else(root: Path, name: str, content: bytes) -> None:
    directory = max(root.iterdir())
    (directory / name).write_bytes(content)
    vouch(directory)
    with pytest.raises(ArtifactError, match=name) as raised:
        pickles.check(directory)
    assert "\n" not in str(raised.value)


def test_each_rank_looks_at_its_share(root: Path, tmp_path: Path) -> None:
    directory = max(root.iterdir())
    index = pickles.read_index(directory)
    objects = len(list(pickles._objects(directory, index)))
    assert objects > 1
    forge(directory, "object", tmp_path / "made")
    refused = 0
    for part in range(objects):
        try:
            pickles.check(directory, part, objects)
        except ArtifactError:
            refused += 1
    assert refused == 1


def test_a_common_that_is_no_dictionary(root: Path) -> None:
    directory = max(root.iterdir())
    torch.save([1], directory / "common.pt")
    with pytest.raises(ArtifactError, match="holds no dictionary"):
        pickles.check(directory)
    assert json.loads((directory / "metadata.json").read_text()) == pickles._FORMAT


def test_a_state_of_transformer_engine_is_not_looked_into_and_so_refused(root: Path) -> None:
    from primus.trainer.checkpoint import load_other

    directory, layout = max(root.iterdir()), {"tensor_model_parallel_size": 1}
    assert load_other(Training().state, directory, layout).iteration == 2
    index = pickle.loads((directory / ".metadata").read_bytes())  # noqa: S301
    entry = next(at for at in index.storage_data if "_extra_state" in at.fqn)
    torch.save(
        [torch.frombuffer(bytearray(b"cos\nsystem\n"), dtype=torch.uint8)], made := io.BytesIO()
    )
    with open(directory / "__0_0.distcp", "ab") as stream:
        index.storage_data[entry].offset = stream.tell()
        index.storage_data[entry].length = stream.write(made.getvalue())
    (directory / ".metadata").write_bytes(pickle.dumps(index))
    vouch(directory)
    with pytest.raises(UserError, match=r"_extra_state\S* may hold a pickle"):
        load_other(Training().state, directory, layout)
    pickles.check(directory)
