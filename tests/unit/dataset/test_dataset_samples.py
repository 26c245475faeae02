from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small_text import Made

from primus.config.schema import Settings
from primus.dataset import samples
from primus.dataset.core import IndexedDataset
from primus.dataset.samples import SamplesRequest, build_samples, open_split, verify_samples
from primus.errors import ArtifactError, DataError


@pytest.fixture
def copied(made: Made, tmp_path: Path) -> Path:
    """A samples manifest in a copy of everything, elsewhere."""
    for name in ("data", "samples"):
        shutil.copytree(made.root / name, tmp_path / name)
    return tmp_path / "samples" / "manifest.json"


def listing(directory: Path) -> dict[str, tuple[bytes, int]]:
    files = [path for path in directory.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


def tokens_of(made: Made, begin: int, end: int) -> int:
    dataset = IndexedDataset(str(made.data_path.with_name("tokens")))
    return int(dataset.sequence_lengths[begin:end].sum())


def test_a_split_is_one_pass_over_its_documents(made: Made) -> None:
    bounds = {"train": (0, 108), "valid": (108, 118), "test": (118, 120)}
    expected = {split: (tokens_of(made, *b) - 1) // 16 for split, b in bounds.items()}
    assert made.samples.samples == expected
    for split in samples.SPLITS:
        assert len(open_split(made.samples_path, split)) == expected[split]


def test_a_sample_is_tokens_and_their_successors(made: Made) -> None:
    dataset = open_split(made.samples_path, "train")
    seen = []
    for index in range(len(dataset)):
        item = dataset[index]
        assert set(item) == {"tokens", "labels", "loss_mask", "position_ids"}
        assert item["tokens"].shape == item["labels"].shape == (16,)
        assert item["tokens"].dtype == torch.int64
        assert item["loss_mask"].sum() == 16
        assert torch.equal(item["tokens"][1:], item["labels"][:-1])
        assert torch.equal(item["position_ids"], torch.arange(16))
        seen += item["tokens"].tolist()
    # What it returns are views of a file that it unmaps when it goes: it has to stay.
    documents = IndexedDataset(str(made.data_path.with_name("tokens")))
    everything = [token for index in range(108) for token in documents[index].tolist()]
    counts = torch.bincount(torch.tensor(everything), minlength=300)
    left = counts - torch.bincount(torch.tensor(seen), minlength=300)
    assert left.min() >= 0
    assert left.sum() < 17  # what does not fill a sample


def test_end_of_document_positions_can_be_left_out_of_the_loss(made: Made) -> None:
    dataset = open_split(made.samples_path, "train", eod_mask_loss=True)
    eod = made.data.eod_id
    items = [dataset[index] for index in range(len(dataset))]
    assert any((item["tokens"] == eod).any() for item in items)
    for item in items:
        assert torch.equal(item["loss_mask"] == 0, item["tokens"] == eod)


def test_samples_do_not_depend_on_how_long_a_run_is() -> None:
    fields = Settings.model_fields
    affected = {
        name
        for name, field in fields.items()
        for stages in (field.json_schema_extra or {}).get("affects", {}).values()  # type: ignore[union-attr]
        if "samples" in stages
    }
    assert affected == {"seq_length", "split", "seed"}


def test_caches_do_not_depend_on_where_they_lie(
    made: Made, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    request = SamplesRequest(seq_length=16, split="90,8,2", seed=7)
    output = Path("again/manifest.json")
    assert build_samples(request, Path("data/manifest.json"), output) == made.samples
    assert output.read_bytes() == made.samples_path.read_bytes()
    assert torch.equal(
        open_split(output, "valid")[0]["tokens"],
        open_split(made.samples_path, "valid")[0]["tokens"],
    )


def test_another_seed_gives_another_order(made: Made, tmp_path: Path) -> None:
    request = SamplesRequest(seq_length=16, split="90,8,2", seed=8)
    output = tmp_path / "manifest.json"
    manifest = build_samples(request, made.data_path, output)
    assert manifest.fingerprint != made.samples.fingerprint
    pairs = [(open_split(output, "train")[i], open_split(made.samples_path, "train")[i])
             for i in range(8)]  # fmt: skip
    assert any(not torch.equal(a["tokens"], b["tokens"]) for a, b in pairs)


def test_a_second_start_changes_nothing(
    made: Made, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("built again")

    monkeypatch.setattr(samples, "_build", fail)
    request = SamplesRequest(seq_length=16, split="90,8,2", seed=7)
    before = listing(copied.parent)
    assert build_samples(request, made.data_path, copied) == made.samples
    assert listing(copied.parent) == before


@pytest.mark.parametrize(
    ("split", "why"),
    [
        ("100,0.0001,0", "valid gets 0 of 120 documents with 0 tokens"),
        ("0,0,1", None),
        ("1,0,0", None),
    ],
)
def test_a_split_with_a_share_must_have_a_sample(
    made: Made, tmp_path: Path, split: str, why: str | None
) -> None:
    request = SamplesRequest(seq_length=16, split=split, seed=1)
    output = tmp_path / "manifest.json"
    if why is None:
        manifest = build_samples(request, made.data_path, output)
        assert manifest.samples["valid"] == 0
        with pytest.raises(DataError, match="valid has no samples"):
            open_split(output, "valid")
    else:
        with pytest.raises(DataError, match=f"{why}.*one sample needs 17.*Fix: give valid"):
            build_samples(request, made.data_path, output)


@pytest.mark.fault(
    34,
    injected="indices opened by a rank",
    observed="nothing is built or written",
)
def test_opening_writes_nothing(copied: Path) -> None:
    before = listing(copied.parent.parent)
    for split in samples.SPLITS:
        assert open_split(copied, split)[0]["tokens"].shape == (16,)
    assert listing(copied.parent.parent) == before


def test_a_rank_reads_what_is_there(made: Made) -> None:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    expected = open_split(made.samples_path, "train")[3]["tokens"]
    torch.distributed.init_process_group("fake", rank=1, world_size=2, store=FakeStore())
    try:
        assert torch.equal(open_split(made.samples_path, "train")[3]["tokens"], expected)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.fault(
    33,
    injected="sample files missing or cut short",
    observed="refused",
)
@pytest.mark.parametrize("what", ["cache", "token file"])
def test_a_missing_or_shortened_file_is_refused(copied: Path, what: str) -> None:
    path = copied.parent.parent / "data" / "tokens.bin"
    if what == "cache":
        path = next((copied.parent / "cache").glob("*train-shuffle_index.npy"))
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(ArtifactError, match=f"{path.name}: has {len(content) - 1} bytes"):
        open_split(copied, "train")
    path.unlink()
    with pytest.raises(ArtifactError, match=f"{path.name}: missing"):
        open_split(copied, "train")


@pytest.mark.parametrize("what", ["cache", "token file"])
def test_a_flipped_bit_is_found_by_the_full_check(copied: Path, what: str) -> None:
    assert verify_samples(copied).samples["train"] > 0
    path = copied.parent.parent / "data" / "tokens.bin"
    if what == "cache":
        path = next((copied.parent / "cache").glob("*train-sample_index.npy"))
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{path.name}: SHA-256 [0-9a-f]{{64}}, its manifest"):
        verify_samples(copied)


def test_caches_under_the_names_of_another_version_are_refused(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Renamed(samples._Tokenizer):
        def __init__(self, data: Any) -> None:
            super().__init__(data)
            self.unique_identifiers["new"] = "field"

    monkeypatch.setattr(samples, "_Tokenizer", Renamed)
    before = listing(copied.parent)
    with pytest.raises(ArtifactError, match="another version of megatron-core"):
        open_split(copied, "train")
    assert listing(copied.parent) == before


def test_samples_of_other_token_files_are_refused(made: Made, copied: Path) -> None:
    path = copied.parent.parent / "data" / "manifest.json"
    changed = made.data.model_copy(update={"fingerprint": "0" * 64})
    changed.save(path)
    with pytest.raises(DataError, match=f"{made.data.fingerprint}.*{'0' * 64}"):
        open_split(copied, "train")
