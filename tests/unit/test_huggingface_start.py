"""A model to start from: where it comes from, and everything that can be wrong with it."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from trainer_tiny import REPOSITORY

from primus.config.families import families, family_of
from primus.config.families.config_json import content, mismatches
from primus.config.families.mapping import REQUIRED, Rule
from primus.config.load import load
from primus.config.schema.settings import Settings
from primus.config.start_model import HubModel, files, hub_model
from primus.errors import ConfigError, DataError, UnavailableError, UserError
from primus.huggingface.compare import check_model
from primus.huggingface.directory import ModelDirectory
from primus.huggingface.fetch import fetch
from primus.huggingface.read import fill, pieces
from primus.huggingface.start import open_start, verify

TINIES = sorted(path.stem for path in (REPOSITORY / "configs").glob("*_tiny.yaml"))


def settings_of(experiment: str, **changes: Any) -> Settings:
    return load(experiment, {"hardware": "cpu"} | changes, root=REPOSITORY, stages=()).settings


@pytest.fixture
def settings() -> Settings:
    return settings_of("llama3_8B_tiny")


@pytest.fixture
def model(tmp_path: Path, settings: Settings) -> Path:
    """A random model in the published form."""
    return publish(tmp_path / "model", settings)


def publish(directory: Path, settings: Settings) -> Path:
    directory.mkdir()
    family = family_of(settings)
    entries = content(family.fields(settings)) | {"model_type": family.model_type}
    (directory / "config.json").write_text(json.dumps(entries))
    torch.manual_seed(2)
    shapes = {n: s for rule in family.rules(settings) for n, s in rule.shapes().items()}
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    save_file(tensors, directory / "model.safetensors")
    return directory


def rewrite(path: Path, **changes: Any) -> None:
    """Change entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(model: Path, **changes: torch.Tensor | None) -> None:
    """Replace, add or (None) remove tensors."""
    tensors = load_file(model / "model.safetensors") | changes
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, model / "model.safetensors")


@pytest.mark.parametrize("experiment", TINIES)
def test_every_entry_that_differs_is_named_with_both_values(
    tmp_path: Path, experiment: str
) -> None:
    settings = settings_of(experiment)
    family = family_of(settings)
    published = content(family.fields(settings)) | {"model_type": family.model_type}
    assert list(mismatches(published, family, settings)) == []
    for field in family.fields(settings):
        group, _, name = field.name.rpartition(".")
        if group and published[group] is None:
            continue
        other = "other" if isinstance(field.value, str) else 12345
        inner = {group: published[group] | {name: other}} if group else {name: other}
        (found,) = mismatches(published | inner, family, settings)
        assert found.key == field.key
        assert field.name.replace(".type", ".rope_type") in found.why.replace(".type", ".rope_type")
        assert json.dumps(other) in found.why
        assert json.dumps(field.value) in found.why


@pytest.mark.parametrize("experiment", TINIES)
def test_entries_that_a_config_may_leave_out(experiment: str) -> None:
    settings = settings_of(experiment)
    family = family_of(settings)
    published = content(family.fields(settings)) | {"model_type": family.model_type}
    for field in family.fields(settings):
        if "." not in field.name and field.default != field.value:
            rest = {name: value for name, value in published.items() if name != field.name}
            (found,) = mismatches(rest, family, settings)
            missing = field.default is REQUIRED
            assert found.key == field.key
            assert ("does not say" in found.why) == missing


def test_the_other_way_to_write_frequencies_is_read() -> None:
    settings = settings_of("llama3.1_8B_tiny")
    family = family_of(settings)
    published = content(family.fields(settings)) | {"model_type": "llama"}
    rope = published.pop("rope_scaling") | {"rope_theta": published.pop("rope_theta")}
    assert list(mismatches(published | {"rope_parameters": rope}, family, settings)) == []
    (found,) = mismatches(published | {"rope_parameters": rope | {"x": 1}}, family, settings)
    assert "rope_scaling.x = 1, which Megatron-core has not" in found.why


def test_exactly_one_family_takes_each_model() -> None:
    for path in sorted((REPOSITORY / "configs").glob("*_tiny.yaml")):
        settings = settings_of(path.stem)
        assert [f.model_type for f in families() if not list(f.objections(settings))] == [
            family_of(settings).model_type
        ]


def test_a_model_of_another_type(model: Path, settings: Settings) -> None:
    rewrite(model / "config.json", model_type="mistral")
    with pytest.raises(UserError, match=r"describe model_type llama, config.json says mistral"):
        check_model(ModelDirectory(model), settings)


def test_tensors_too_few_too_many_and_of_another_shape(model: Path, settings: Settings) -> None:
    extra = {"model.more": torch.zeros(1), "x.rotary_emb.inv_freq": torch.zeros(1)}
    change_tensors(model, **{"model.norm.weight": None, "lm_head.weight": torch.zeros(2)} | extra)
    with pytest.raises(DataError) as caught:
        check_model(ModelDirectory(model), settings)
    assert "1 tensors missing: model.norm.weight; 1 tensors too many: model.more; " in str(
        caught.value
    )
    assert "lm_head.weight has shape (2,), the settings give (2048, 128)" in str(caught.value)


def test_an_index_that_names_a_missing_file(model: Path, settings: Settings) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"has no model-00001-of-00002.safetensors"):
        check_model(ModelDirectory(model), settings)


@pytest.mark.parametrize("content", ["{", "[]", None])
def test_a_config_that_cannot_be_read(model: Path, content: str | None) -> None:
    if content is None:
        (model / "config.json").unlink()
    else:
        (model / "config.json").write_text(content)
    with pytest.raises(DataError, match=r"config\.json"):
        fetch(str(model), model / "unused")


def test_a_damaged_file(model: Path, settings: Settings) -> None:
    (model / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(DataError, match=r"model.safetensors: cannot be read: .*Fix"):
        check_model(ModelDirectory(model), settings)


def test_a_file_that_changes_after_it_was_hashed(
    tmp_path: Path, model: Path, settings: Settings
) -> None:
    manifest = tmp_path / "manifest.json"
    first = fetch(str(model), tmp_path / "unused")
    first.save(manifest)
    assert first.revision is None
    assert sorted(first.files) == ["config.json", "model.safetensors"]
    assert first.config == json.loads((model / "config.json").read_text())
    directory, family = open_start(manifest, settings)
    assert (directory.path, family.model_type) == (model, "llama")
    verify(manifest)
    change_tensors(model, **{"model.norm.weight": torch.zeros(128)})
    assert fetch(str(model), tmp_path / "unused").fingerprint != first.fingerprint
    with pytest.raises(
        DataError, match=r"load_hf = .*: changed since .*model.safetensors: SHA-256"
    ):
        verify(manifest)
    verify(manifest, part=0, parts=2)


def test_what_load_hf_may_name(tmp_path: Path, model: Path) -> None:
    assert hub_model("org/name") == HubModel("org/name", None)
    assert hub_model("org/name@v1.0") == HubModel("org/name", "v1.0")
    assert hub_model("/somewhere/else") is None
    assert hub_model("a/b/c") is None
    (tmp_path / "org/name").mkdir(parents=True)
    assert hub_model("org/name", tmp_path) is None
    assert hub_model("org/other", tmp_path) is None
    assert hub_model("org/other@main", tmp_path) == HubModel("org/other", "main")
    assert files("other/name", tmp_path) == []
    assert files("model", tmp_path) == ["model/config.json", "model/model.safetensors"]


@pytest.mark.parametrize(
    ("load_hf", "why"),
    [
        ("../model", "climbs out of the root"),
        ("empty", "has no readable config.json"),
        ("emptiness", "is neither a directory nor a hub id"),
        ("/no/such/place", "there is no such directory"),
        ("./models/llma", r"there is no such directory. Fix: did you mean models/llama\?"),
        (
            "models/llma",
            r"no such directory.*models/llama\? \(a model of the hub: write models/llma@main\)",
        ),
        ("modls/llama/v1", r"no such directory. Fix: did you mean models/llama/v1\?"),
        ("~/models/llama", "'~' is not expanded.*write the absolute path"),
        ("models/llama/config.json", "is a file, and a directory is wanted"),
    ],
)
def test_mistakes_in_load_hf_show_in_the_dry_run(tmp_path: Path, load_hf: str, why: str) -> None:
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    (tmp_path / "empty").mkdir()
    (tmp_path / "models/llama").mkdir(parents=True)
    (tmp_path / "models/llama/config.json").touch()
    changes = {"hardware": "cpu", "load_hf": load_hf}
    shown = re.escape(f'--config: load_hf = "{load_hf}": ')
    with pytest.raises(ConfigError, match=rf"^{shown}.*{why}") as caught:
        load("llama3_8B_tiny", changes, root=tmp_path, stages=("weights",))
    assert str(caught.value).count("Fix: ") == 1
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("load_hf", ["meta-llama/Llama-3.1-8B", "org/name@v1", "models/other@main"])
def test_names_of_the_hub_are_no_mistake(tmp_path: Path, load_hf: str) -> None:
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    (tmp_path / "models").mkdir()
    changes = {"hardware": "cpu", "load_hf": load_hf}
    load("llama3_8B_tiny", changes, root=tmp_path, stages=("weights",))


def test_an_architecture_that_nobody_published_shows_before_the_training() -> None:
    changes = {"hardware": "cpu", "add_bias_linear": True}
    with pytest.raises(ConfigError, match="add_bias_linear = true: no published architecture"):
        load("llama3_8B_tiny", changes, root=REPOSITORY, stages=("train", "export"))
    load("llama3_8B_tiny", changes, root=REPOSITORY, stages=("shapes",))


def test_a_model_of_the_hub_is_pinned_and_no_code_is_fetched(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import huggingface_hub
    asked: dict[str, Any] = {}

    class Hub:
        sha = "c" * 40

        def __init__(self, token: str | bool) -> None:
            asked["token"] = token

        def model_info(self, repo: str, revision: str | None) -> Hub:
            asked["name"] = (repo, revision)
            return self

    def download(repo: str, **arguments: Any) -> None:
        asked.update(arguments, repo=repo)
        arguments["local_dir"].mkdir()
        for path in model.iterdir():
            (arguments["local_dir"] / path.name).write_bytes(path.read_bytes())

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    manifest = fetch("org/name@main", tmp_path / "download")
    assert asked["name"] == ("org/name", "main")
    assert (asked["repo"], asked["revision"], asked["token"]) == ("org/name", "c" * 40, False)
    assert asked["allow_patterns"] == [
        "config.json",
        "model.safetensors.index.json",
        "*.safetensors",
    ]
    assert (manifest.source, manifest.revision) == ("org/name@main", "c" * 40)
    assert manifest.directory == str(tmp_path / "download")
    assert manifest.fingerprint == fetch(str(model), tmp_path / "unused").fingerprint
    monkeypatch.setenv("HF_TOKEN", "secret")
    fetch("org/name", tmp_path / "again")
    assert asked["token"] == "secret"
    assert "secret" not in manifest.model_dump_json()


def test_a_hub_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import huggingface_hub

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("404: not found\nmore")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    message = re.escape("load_hf = org/name: cannot be downloaded: 404: not found. Fix: check")
    with pytest.raises(UnavailableError, match=message):
        fetch("org/name", tmp_path)


def test_a_slice_at_any_place_holds_what_the_whole_holds(model: Path, settings: Settings) -> None:
    directory = ModelDirectory(model)
    for rule in family_of(settings).rules(settings):
        shape = (rule.rows,) if rule.columns is None else (rule.rows, rule.columns)
        whole = torch.full(shape, 7.0)
        fill(directory, rule, whole, (0,) * whole.dim())
        for name, tensor in pieces(rule, whole).items():
            assert torch.equal(tensor, directory.slice(name)[:])
        height = rule.rows // 3 + 1
        for top in range(0, rule.rows, height):
            part = torch.full_like(whole[top : top + height], 7.0)
            part = part[..., 1:].contiguous() if rule.columns else part
            fill(directory, rule, part, (top, 1)[: whole.dim()])
            expected = whole[top : top + height]
            assert torch.equal(part, expected[:, 1:] if rule.columns else expected)


def test_rows_of_padding_are_zero(model: Path, settings: Settings) -> None:
    rule = next(rule for rule in family_of(settings).rules(settings) if rule.padded)
    part = torch.full((100, 128), 7.0)
    fill(ModelDirectory(model), rule, part, (rule.rows - 40, 0))
    assert not part[40:].any()
    assert part[:40].abs().sum(1).all()
    fill(ModelDirectory(model), rule, part, (rule.rows + 40, 0))
    assert not part.any()


def test_copies_that_differ_are_refused(tmp_path: Path) -> None:
    settings = settings_of("deepseek_v3_tiny")
    model = publish(tmp_path / "model", settings)
    rule = next(rule for rule in family_of(settings).rules(settings) if rule.copies)
    with pytest.raises(DataError, match=r"model.layers.4.embed_tokens.weight differs from"):
        fill(ModelDirectory(model), rule, torch.zeros(10, 128), (0, 0))


def in_float8(model: Path, size: int) -> dict[str, torch.Tensor]:
    """Quantize the matrices of a model as DeepSeek-V3 is published; gives what they stand for."""
    stored: dict[str, torch.Tensor] = {}
    meant: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(model / "model.safetensors").items():
        if tensor.dim() == 1:
            stored[name] = meant[name] = tensor
            continue
        rows, columns = tensor.shape
        blocks = (-(-rows // size), -(-columns // size))
        scale = torch.rand(blocks) + 0.5
        wide = scale.repeat_interleave(size, 0)[:rows].repeat_interleave(size, 1)[:, :columns]
        stored[name] = (tensor / wide).to(torch.float8_e4m3fn)
        stored[f"{name}_scale_inv"] = scale
        meant[name] = stored[name].float() * wide
    save_file(stored, model / "model.safetensors")
    return meant


def test_float8_weights_with_block_scales_are_read(tmp_path: Path) -> None:
    settings = settings_of("deepseek_v3_tiny")
    model = publish(tmp_path / "model", settings)
    meant = in_float8(model, 48)
    quantized = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [48, 48]}
    rewrite(model / "config.json", quantization_config=quantized)
    directory = ModelDirectory(model)
    rules = list(check_model(directory, settings).rules(settings))

    def check(rule: Rule) -> None:
        part = torch.zeros(rule.rows - 5, (rule.columns or 0) - 3)
        fill(directory, rule, part, (5, 3))
        whole = torch.cat([meant[b.name][b.first : b.first + b.count] for b in rule.blocks])
        assert torch.equal(part, whole[5:, 3:])

    for rule in rules:
        if rule.columns and not rule.copies:
            check(rule)


def test_other_quantizations_are_refused(model: Path, settings: Settings) -> None:
    rewrite(model / "config.json", quantization_config={"quant_method": "gptq"})
    with pytest.raises(UserError, match=r"quantization_config .*gptq.*, which is not read"):
        check_model(ModelDirectory(model), settings)
    rewrite(model / "config.json", quantization_config=None)
    change_tensors(model, **{"lm_head.weight": torch.zeros(2048, 128).to(torch.float8_e4m3fn)})
    rule = next(r for r in family_of(settings).rules(settings) if r.megatron.startswith("output"))
    with pytest.raises(DataError, match=r"lm_head.weight is in float8 without scales"):
        fill(ModelDirectory(model), rule, torch.zeros(10, 128), (0, 0))
