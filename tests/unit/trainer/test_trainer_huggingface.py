"""Every small model is the same model to transformers, both ways."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from trainer_tiny import REPOSITORY

from primus.config.families import family_of
from primus.config.families.config_json import content
from primus.config.frozen import StageSettings
from primus.config.identity import identities
from primus.config.load import load
from primus.huggingface.compare import check_model, shapes
from primus.huggingface.directory import ModelDirectory
from primus.huggingface.read import fill
from primus.huggingface.write import write_model

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import AutoConfig, AutoModelForCausalLM

pytestmark = pytest.mark.usefixtures("single_rank", "eager")

MODELS = sorted(path.stem for path in (REPOSITORY / "configs").glob("*_tiny.yaml"))
# Of the largest difference to the largest logit.
TOLERANCE = 1e-5
# Longer than yarn's original length in the small models, so that its frequencies matter.
TOKENS = 96


def settings_of(experiment: str, **changes: Any) -> StageSettings:
    """The train stage's settings of a shipped experiment, one process in float32."""
    plain = {"hardware": "cpu", "nproc_per_node": 1, "bf16": False}
    resolved = load(experiment, plain | changes, root=REPOSITORY, stages=())
    made = identities(resolved.settings)["train"]
    return StageSettings.of_key(made, experiment)


def published(settings: StageSettings, directory: Path) -> Any:
    """A random model of transformers, saved as its authors publish such models."""
    torch.manual_seed(5)
    directory.mkdir()
    family = family_of(settings)
    entries = content(family.fields(settings)) | {"model_type": family.model_type}
    (directory / "config.json").write_text(json.dumps(entries))
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory))
    with torch.no_grad():
        for tensor in model.state_dict().values():
            # Large weights, so that attention, its rotations and the routing show in the logits.
            spread = torch.randn_like(tensor)
            tensor.copy_(1 + 0.1 * spread if tensor.dim() == 1 else 0.1 * spread)
    model.save_pretrained(directory)
    (directory / "config.json").write_text(json.dumps(entries))
    return model.eval()


def complete(settings: StageSettings, directory: Path) -> dict[str, torch.Tensor]:
    """Add what transformers leaves out of a published model: the layers of mtp."""
    tensors = load_file(directory / "model.safetensors")
    for rule in family_of(settings).rules(settings):
        for name, shape in rule.shapes().items():
            if name not in tensors:
                tensors[name] = 0.1 * torch.randn(shape)
        for name in rule.copies:
            tensors[name] = tensors[rule.blocks[0].name].clone()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return tensors


def megatron(settings: StageSettings) -> Any:
    """Our model with random weights."""
    from primus.trainer import parallel
    from primus.trainer.model import model_config

    parallel.seed(settings)
    (chunk,) = parallel.build_chunks(settings, model_config(settings))
    return chunk.eval()


def imported(settings: StageSettings, directory: Path) -> Any:
    """Our model with the weights of `directory`; its config.json is not looked at."""
    from primus.trainer.start_weights import load_weights

    source = ModelDirectory(directory)
    chunk = megatron(settings)
    rules = family_of(settings).rules(settings)
    load_weights([chunk], rules, lambda rule, target, at: fill(source, rule, target, at))
    return chunk


def exported(settings: StageSettings, chunk: Any, directory: Path) -> Path:
    """The model through a checkpoint to a Hugging Face directory."""
    from primus.trainer.checkpoint_write import take, write_files

    checkpoint = directory.with_name("checkpoint")
    checkpoint.mkdir()
    write_files(take({"model": chunk.sharded_state_dict(metadata={})}, {}), checkpoint)
    directory.mkdir()
    write_model(checkpoint, settings, directory, eod_id=0)
    return directory


@torch.no_grad()
def relative_error(settings: StageSettings, own: Any, theirs: Any) -> float:
    """Largest difference of the logits over the largest logit, for random tokens."""
    torch.manual_seed(9)
    tokens = torch.randint(0, settings.vocab_size, (2, TOKENS))
    ours = own(tokens, torch.arange(TOKENS).expand(2, TOKENS), None)[..., : settings.vocab_size]
    logits = theirs(tokens).logits
    assert logits.shape == ours.shape
    assert logits.std() > 0.1
    return float((ours - logits).abs().max() / logits.abs().max())


@pytest.mark.parametrize("experiment", MODELS)
def test_an_imported_model_is_that_of_transformers_and_exports_bit_by_bit(
    tmp_path: Path, experiment: str
) -> None:
    settings = settings_of(experiment)
    theirs = published(settings, tmp_path / "published")
    tensors = complete(settings, tmp_path / "published")
    check_model(ModelDirectory(tmp_path / "published"), settings)
    chunk = imported(settings, tmp_path / "published")
    assert relative_error(settings, chunk, theirs) <= TOLERANCE
    again = load_file(exported(settings, chunk, tmp_path / "exported") / "model.safetensors")
    assert {name: (t.shape, t.dtype) for name, t in again.items()} == {
        name: (t.shape, t.dtype) for name, t in tensors.items()
    }
    assert not [name for name, tensor in tensors.items() if not torch.equal(tensor, again[name])]


@pytest.mark.parametrize("experiment", MODELS)
def test_an_exported_model_is_that_of_transformers(tmp_path: Path, experiment: str) -> None:
    settings = settings_of(experiment, init_method_std=0.1)
    chunk = megatron(settings)
    theirs = AutoModelForCausalLM.from_pretrained(exported(settings, chunk, tmp_path / "exported"))
    assert relative_error(settings, chunk, theirs.eval()) <= TOLERANCE
    assert {name for name, _ in theirs.named_parameters()}
    names = shapes(family_of(settings).rules(settings))
    assert len(load_file(tmp_path / "exported/model.safetensors")) == len(names)


# Values without a tensor of their own, and another value that the same tensors allow.
OTHERWISE: dict[str, dict[str, Any]] = {
    "llama3.1_8B_tiny": {"norm_epsilon": 1e-3, "rotary_base": 1e4, "rope_scaling_factor": 2.0},
    "deepseek_v2_tiny": {
        "moe_router_group_topk": 3,
        "moe_router_num_groups": 2,
        "moe_router_topk_scaling_factor": 8.0,
        "mscale_all_dim": 1.0,
        "rotary_scaling_factor": 20.0,
    },
    "deepseek_v3_tiny": {
        "beta_slow": 4.0,
        "moe_router_group_topk": 1,
        "moe_router_topk": 3,
        "mscale": 0.5,
        "original_max_position_embeddings": 32,
    },
}


@pytest.mark.parametrize("experiment", OTHERWISE)
def test_the_logits_show_every_value_that_has_no_tensor(tmp_path: Path, experiment: str) -> None:
    """The parity is none that would hold with other values, too."""
    settings = settings_of(experiment)
    theirs = published(settings, tmp_path / "published")
    complete(settings, tmp_path / "published")
    for key, value in OTHERWISE[experiment].items():
        other = settings_of(experiment, **{key: value})
        chunk = imported(other, tmp_path / "published")
        assert relative_error(settings, chunk, theirs) > 10 * TOLERANCE, key
