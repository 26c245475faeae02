"""An exported checkpoint is the same model to transformers."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from test_trainer_checkpoint import ABOUT, Training
from trainer_tiny import TEXT

from primus.artifacts.export import ExportManifest
from primus.artifacts.provenance import environment
from primus.artifacts.run import TrainManifest
from primus.errors import ArtifactError, DataError, UserError
from primus.export import export
from primus.huggingface import write
from primus.trainer import checkpoint_directory

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.usefixtures("single_rank", "eager")


class Exported:
    """A run of two steps and where its export goes."""

    def __init__(self, root: Path, tokenizer: Path, **changes: Any) -> None:
        from primus.trainer.checkpoint import save

        # Large weights, so that attention and its rotations show in the logits.
        self.training = Training(init_method_std=0.2, **changes)
        self.training.steps(2)
        self.checkpoint = save(self.training.state, root / "checkpoints", ABOUT)
        self.tokenizer, self.train = tokenizer, root / "train.json"
        self.directory = root / "hf"
        fingerprint = json.loads(tokenizer.read_text())["fingerprint"]
        self.manifest(fingerprint).save(self.train)

    def manifest(self, fingerprint: str) -> TrainManifest:
        key = str(ABOUT["key"])
        return TrainManifest(
            experiment="tiny",
            key=key,
            iteration=2,
            consumed_samples=8,
            consumed_tokens=256,
            loss=6.0,
            validation_loss=None,
            parameters=sum(p.numel() for p in self.megatron().parameters()),
            flops_per_token=1.0,
            seconds=1.0,
            tokens_per_second=1.0,
            peak_tflops_per_device=None,
            attempts=1,
            samples_fingerprint="s",
            data_fingerprint="d",
            tokenizer_fingerprint=fingerprint,
            tuned=None,
            settings=self.training.settings.identity,
            environment=environment(platform_name="cpu", device="cpu", devices=1, variables={}),
            checkpoints=list(
                checkpoint_directory.summarise(self.checkpoint.parent, key),
            ),
        )

    def megatron(self) -> torch.nn.Module:
        module: torch.nn.Module = self.training.state.chunks[0].module
        return module

    def export(self) -> ExportManifest:
        export(self.train, self.tokenizer, self.directory / "manifest.json")
        return ExportManifest.load(self.directory / "manifest.json")

    def load(self) -> Any:
        model = AutoModelForCausalLM.from_pretrained(self.directory, dtype="auto")
        return model.eval()

    @torch.no_grad()
    def logits(self, model: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Of Megatron's model and of `model`, for the same random tokens."""
        torch.manual_seed(9)
        tokens = torch.randint(0, self.training.settings.vocab_size, (2, 48))
        positions = torch.arange(48).expand(2, 48)
        own = self.megatron().eval()(tokens, positions, None)
        return own, model(tokens).logits


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="grouped queries"),
        pytest.param({"num_query_groups": 4}, id="one group per head"),
        pytest.param({"kv_channels": 24}, id="heads wider than hidden"),
        pytest.param({"use_rope_scaling": True, "rope_scaling_factor": 8.0}, id="rope scaling"),
        pytest.param({"untie_embeddings_and_output_weights": False}, id="tied embeddings"),
        pytest.param(
            {"vocab_size": 509, "tokenizer_vocab_size": 509, "make_vocab_size_divisible_by": 64},
            id="padded vocabulary",
        ),
    ],
)
def test_logits_are_those_of_megatron(
    tmp_path: Path, tokenizer: Path, changes: dict[str, Any]
) -> None:
    exported = Exported(tmp_path, tokenizer, **changes)
    manifest = exported.export()
    model = exported.load()
    assert type(model).__name__ == manifest.architecture == "LlamaForCausalLM"
    own, theirs = exported.logits(model)
    own = own[..., : exported.training.settings.vocab_size]
    assert own.std() > 0.1
    assert relative_error(theirs, own) <= 1e-5
    assert manifest.dtype == "float32"
    if not changes.get("make_vocab_size_divisible_by"):
        assert manifest.parameters == sum(p.numel() for p in model.parameters())


def test_rope_scaling_matters_here(tmp_path: Path, tokenizer: Path) -> None:
    """The parity with scaling is none that holds without it, too."""
    exported = Exported(tmp_path, tokenizer, use_rope_scaling=True, rope_scaling_factor=8.0)
    exported.export()
    path = exported.directory / "config.json"
    config = json.loads(path.read_text())
    config["rope_scaling"] = None
    path.write_text(json.dumps(config))
    own, theirs = exported.logits(exported.load())
    assert relative_error(theirs, own) > 1e-4


def test_bfloat16_stays_bfloat16(tmp_path: Path, tokenizer: Path) -> None:
    exported = Exported(tmp_path, tokenizer, bf16=True)
    assert exported.export().dtype == "bfloat16"
    model = exported.load()
    assert model.dtype == torch.bfloat16
    weights = dict(exported.megatron().named_parameters())
    ours = next(t for name, t in weights.items() if name.endswith("final_layernorm.weight"))
    assert torch.equal(model.model.norm.weight, ours)


def test_several_files_with_an_index(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "MAX_SHARD_BYTES", 100_000)
    exported = Exported(tmp_path, tokenizer)
    manifest = exported.export()
    index = json.loads((exported.directory / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    assert set(files) <= set(manifest.files)
    tensors = index["metadata"]["total_size"]
    assert tensors == 4 * manifest.parameters
    own, theirs = exported.logits(exported.load())
    assert relative_error(theirs, own) <= 1e-5


def test_the_tokenizer_loads_and_gives_the_text_back(tmp_path: Path, tokenizer: Path) -> None:
    exported = Exported(tmp_path, tokenizer)
    exported.export()
    loaded = AutoTokenizer.from_pretrained(exported.directory)
    ids = loaded(TEXT)["input_ids"]
    assert max(ids) < 300
    assert loaded.decode(ids) == TEXT
    config = json.loads((exported.directory / "config.json").read_text())
    assert loaded.eos_token_id == config["eos_token_id"]


def test_exporting_again_replaces_the_model_and_keeps_what_others_put_there(
    tmp_path: Path, tokenizer: Path
) -> None:
    exported = Exported(tmp_path, tokenizer)
    first = exported.export()
    (exported.directory / "model.gguf").write_text("converted by somebody")
    (exported.directory / "notes").mkdir()
    (exported.directory / "notes/a.txt").write_text("a note")
    (exported.directory / "model-00001-of-00002.safetensors").write_text("of an older export")
    (exported.directory / "README.md").write_text("edited")
    assert exported.export().files == first.files
    for name, record in first.files.items():
        record.verify(exported.directory / name)
    others = {path.name for path in exported.directory.iterdir()} - first.files.keys()
    assert others == {"manifest.json", "model.gguf", "notes"}
    assert (exported.directory / "model.gguf").read_text() == "converted by somebody"
    assert (exported.directory / "notes/a.txt").read_text() == "a note"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_an_export_behind_a_link_stays_there(tmp_path: Path, tokenizer: Path) -> None:
    exported = Exported(tmp_path, tokenizer)
    (tmp_path / "disk/hf").mkdir(parents=True)
    exported.directory.symlink_to(tmp_path / "disk/hf")
    exported.export()
    exported.export()
    assert exported.directory.is_symlink()
    assert (tmp_path / "disk/hf/model.safetensors").is_file()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["hf"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o007, 0o660)])
def test_whoever_may_read_the_card_may_read_the_weights(
    tmp_path: Path, tokenizer: Path, mask: int, mode: int
) -> None:
    exported = Exported(tmp_path, tokenizer)
    before = os.umask(mask)
    try:
        files = exported.export().files
    finally:
        os.umask(before)
    assert {(exported.directory / name).stat().st_mode & 0o777 for name in files} == {mode}


def test_a_damaged_checkpoint_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    exported = Exported(tmp_path, tokenizer)
    path = max(exported.checkpoint.glob("*.distcp"), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=path.name):
        exported.export()
    assert not exported.directory.exists()


def test_another_tokenizer_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    exported = Exported(tmp_path, tokenizer)
    exported.manifest("another").save(exported.train)
    with pytest.raises(DataError, match=r"fingerprint = .*trained with another"):
        exported.export()


def test_an_architecture_that_nobody_published_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    exported = Exported(tmp_path, tokenizer, add_bias_linear=True)
    with pytest.raises(
        UserError, match=r"add_bias_linear = True: .* has it otherwise. Fix: .*false"
    ):
        exported.export()
