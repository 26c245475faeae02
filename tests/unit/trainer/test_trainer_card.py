"""The model card: what it states, what it leaves out, and that the manifest vouches for it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from test_trainer_export import Exported

from primus.artifacts.export import ExportManifest
from primus.artifacts.run import TrainManifest, TunedUse
from primus.artifacts.tokens import TokenizerManifest
from primus.config.identity import identities
from primus.config.load import load
from primus.errors import ArtifactError, ConfigError
from primus.export import export
from tests.unit.trainer_tiny import REPOSITORY, TINY

pytestmark = pytest.mark.usefixtures("single_rank", "eager")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path, single_rank: None) -> Exported:
    return Exported(tmp_path_factory.mktemp("card"), tokenizer)


def card_of(run: Exported, changes: dict[str, Any] | None = None, **stated: Any) -> ModelCard:
    """The card of an export after `changes` of train.json."""
    train = run.manifest(TokenizerManifest.load(run.tokenizer).fingerprint)
    train.model_copy(update=changes or {}).save(run.train)
    export(run.train, run.tokenizer, run.directory / "manifest.json", **stated)
    return ModelCard.load(run.directory / "README.md")


def facts(card: ModelCard) -> dict[str, str]:
    """The rows of its tables."""
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", card.text, re.MULTILINE)
    assert len(rows) == len(dict(rows))
    return dict(rows)


def test_facts_are_those_of_the_run(run: Exported) -> None:
    card = card_of(run, {"validation_loss": 5.25, "loss": 6.125, "seconds": 5400.0})
    train, found = TrainManifest.load(run.train), facts(card)
    assert found["Architecture"].startswith("LlamaForCausalLM, 2 layers, hidden size 64, 4 heads")
    assert found["Parameters"] == f"{train.parameters:,}"
    assert found["Numbers in the files"] == f"{train.parameters:,} in float32"
    assert found["Last training loss"] == "6.1250 nats per token, of one batch"
    assert found["Validation loss"] == "5.2500 nats per token"
    assert found["Trained for"].startswith("2 iterations")
    s = run.training.settings
    assert found["Learning rate"] == (
        f"{s.lr:g}, cosine down to {s.min_lr:g} at iteration {s.lr_decay_iters:,}, "
        f"after {s.lr_warmup_iters:,} iterations of warm-up"
    )
    assert found["Time"] == "1.50 hours in 1 attempts"
    assert found["Hardware"] == "1 × cpu, 1 rank"
    assert found["Tuned GEMMs"] == "none"
    assert found["Precision"] == "fp32"
    assert found["Started from"] == "random weights"
    assert found["Data"] == "`d`"
    assert found["Tokenizer"] == f"`{train.tokenizer_fingerprint}`"
    assert found["Code"] == "`c`"
    assert found["torch"] == train.environment.libraries["torch"]


def test_tuned_products_and_other_losses_are_said(run: Exported) -> None:
    use = TunedUse(hits=1200, defaults=30, misses=4, rejections=1)
    found = facts(card_of(run, {"tuned": use}))
    assert found["Validation loss"] == "not measured"
    assert found["Tuned GEMMs"].startswith("1,200 calls by a tuned kernel, 30 by the default")
    assert "5 by the default for want of a tuned one" in found["Tuned GEMMs"]


def test_losses_of_another_iteration_are_left_out(run: Exported) -> None:
    found = facts(card_of(run, {"iteration": 7}))
    assert "not the last checkpoint" in found["Losses"]
    assert not {"Last training loss", "Parameters", "Tuned GEMMs", "Time"} & found.keys()
    assert found["Hardware"] == "1 rank"


def test_nothing_is_claimed_that_nobody_stated(run: Exported) -> None:
    bare = card_of(run)
    assert bare.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["megatron-core"],
    }
    assert facts(bare)["Licence"] == "none stated"
    stated = card_of(run, license="apache-2.0", language=["en", "de"])
    assert stated.data.license == "apache-2.0"
    assert stated.data.language == ["en", "de"]
    assert facts(stated)["Licence"] == "apache-2.0"


def test_the_card_names_no_place_of_this_machine(run: Exported) -> None:
    train = run.manifest(TokenizerManifest.load(run.tokenizer).fingerprint)
    text = card_of(run).content
    assert str(run.train.parent) not in text
    assert train.environment.host not in re.findall(r"[\w.-]+", text)


def test_the_name_of_a_device_stays_in_its_cell(run: Exported) -> None:
    odd = {"device": "A|B\n| c | <b>"}
    seen = run.manifest("x").environment.model_copy(update=odd)
    assert (
        "A\\|B \\| c \\| \\<b\\>, 1 rank" in facts(card_of(run, {"environment": seen}))["Hardware"]
    )


def test_the_command_is_checked(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has an experiment `tiny`; the shipped one with these values has this identity."""
    monkeypatch.chdir(REPOSITORY)
    own = {"vocab_size": 2048, "tokenizer_vocab_size": 2048}
    run = Exported(tmp_path, tokenizer, **own)
    text = card_of(run).text
    assert "git checkout c\nsnakemake train_tiny\n" in text
    assert "could not be checked" in text
    values = TINY | own | {"init_method_std": 0.2, "lr_warmup_iters": 0}
    values |= {"gemm_tuning": {"enabled": False}}
    made = identities(load("llama3_8B_tiny", values, root=REPOSITORY, stages=()).settings)["train"]
    changes = {"experiment": "llama3_8B_tiny", "settings": made.identity | made.extent}
    text = card_of(run, changes).text
    command = re.search(r"^snakemake train_llama3_8B_tiny --config (.*)$", text, re.MULTILINE)
    assert command
    assert "hidden_size=64" in command[1]
    # The key of these runs is made up.
    assert "could not be checked" in text
    monkeypatch.setattr("primus.export_checkpoint.verify", lambda path, _: _verified(path))
    text = card_of(run, changes | {"key": made.key}).text
    assert "these commands gave this run's identity" in text


def _verified(path: Path) -> Any:
    from primus.trainer.checkpoint_directory import verify

    return verify(path, "0" * 12)


def test_the_manifest_vouches_for_the_card(run: Exported) -> None:
    card_of(run)
    manifest = ExportManifest.load(run.directory / "manifest.json")
    card = run.directory / "README.md"
    manifest.files["README.md"].verify(card)
    card.write_text(card.read_text().replace("none stated", "all allowed"))
    with pytest.raises(ArtifactError, match=r"README\.md: SHA-256"):
        manifest.files["README.md"].verify(card)


@pytest.mark.parametrize(
    "value", [{"license": "Apache 2.0"}, {"license": "a\nb: c"}, {"language": ["English text"]}]
)
def test_what_is_stated_has_a_form(value: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"model_card\."):
        load("llama3_8B_tiny", {"hardware": "cpu", "model_card": value}, root=REPOSITORY, stages=())


def test_a_card_changes_the_export_and_nothing_else() -> None:
    plain, licensed = (
        identities(
            load("llama3_8B_tiny", {"hardware": "cpu", **more}, root=REPOSITORY, stages=()).settings
        )
        for more in ({}, {"model_card": {"license": "mit"}})
    )
    assert {stage: made.key for stage, made in plain.items()} == {
        stage: made.key for stage, made in licensed.items()
    }
    changed = [stage for stage in plain if plain[stage].digest != licensed[stage].digest]
    assert changed == ["export"]
