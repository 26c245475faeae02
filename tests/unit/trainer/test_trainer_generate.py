"""python -m primus.generate: what it samples from, what it samples, and what it refuses."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_trainer_export import Exported

from primus import generate
from primus.artifacts.run import RunIdentity
from primus.artifacts.tokens import TokenizerManifest
from primus.dataset.tokenizer import load_tokenizer
from primus.errors import ArtifactError, CheckpointError, DataError, UserError

pytestmark = pytest.mark.usefixtures("single_rank", "eager")

PROMPT = "It was the best"
NEW = 12
# Published models have whole experts for all tokens.
SHARED = {"moe_shared_expert_intermediate_size": 64}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path, single_rank: None) -> Exported:
    """A run of two steps, its export and run.json, as the pipeline lays them out."""
    root = tmp_path_factory.mktemp("project")
    torch.compiler.set_stance("force_eager")
    made = as_run(root / "output/runs/small/000000000000", tokenizer)
    torch.compiler.set_stance("default")
    made.export()
    return made


def as_run(directory: Path, tokenizer: Path, **changes: Any) -> Exported:
    directory.mkdir(parents=True)
    made = Exported(directory, tokenizer, **changes)
    train = made.manifest(TokenizerManifest.load(tokenizer).fingerprint)
    RunIdentity(
        experiment="small",
        key=train.key,
        settings=train.settings,
        samples_fingerprint="s",
        tokenizer_fingerprint=train.tokenizer_fingerprint,
        tuned_sha256=None,
    ).save(directory / "run.json")
    shutil.copytree(tokenizer.parent, directory.parents[2] / "tokenizer/small/made")
    return made


@torch.no_grad()
def greedy(made: Exported, prompt: list[int], known: int) -> list[int]:
    """The most likely ids by Megatron's own model, one whole forward pass for each."""
    ids = list(prompt)
    for _ in range(NEW):
        tokens = torch.tensor([ids])
        positions = torch.arange(len(ids))[None]
        logits = made.megatron().eval()(tokens, positions, None)
        ids.append(int(logits[0, -1, :known].argmax()))
    return ids[len(prompt) :]


def asked(capsys: pytest.CaptureFixture[str], *words: str | Path) -> list[dict[str, Any]]:
    """What the command says with --json."""
    capsys.readouterr()
    generate.main([*map(str, words), "--json"])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="llama"),
        pytest.param({"untie_embeddings_and_output_weights": False}, id="llama, tied"),
        pytest.param({"family": "deepseek_v2_lite", **SHARED}, id="deepseek_v2_lite"),
        pytest.param({"family": "deepseek_v2", **SHARED}, id="deepseek_v2"),
        pytest.param({"family": "deepseek_v3", **SHARED}, id="deepseek_v3"),
    ],
)
def test_greedy_text_is_that_of_megatron(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any]
) -> None:
    """With transformers' cache of keys and values, from a checkpoint that nobody exported."""
    made = as_run(tmp_path / "output/runs/small/0", tokenizer, **changes)
    vocabulary = load_tokenizer(tokenizer).tokenizer()
    prompt = vocabulary.encode(PROMPT, add_special_tokens=False).ids
    known = vocabulary.get_vocab_size()
    assert known < made.training.settings.vocab_size
    expected = greedy(made, prompt, known)
    (found,) = asked(
        capsys, made.checkpoint, PROMPT, "--temperature", "0", "--max-new-tokens", str(NEW)
    )
    eod = TokenizerManifest.load(tokenizer).eod_id
    assert eod not in expected
    assert found["tokens"] == expected
    assert found["text"] == vocabulary.decode(prompt + expected)[len(PROMPT) :]
    assert not found["ended"]


def test_a_seed_decides(run: Exported, capsys: pytest.CaptureFixture[str]) -> None:
    words = (run.train.parent, PROMPT, "--num-return-sequences", "3", "--max-new-tokens", "9")
    first, again, other = (asked(capsys, *words, "--seed", seed) for seed in ("7", "7", "8"))
    assert first == again
    assert [one["tokens"] for one in first] != [one["tokens"] for one in other]
    assert len({tuple(one["tokens"]) for one in first}) == 3
    assert {one["seed"] for one in first} == {7}
    # Without one another is taken, and said.
    unseeded = asked(capsys, *words)
    assert asked(capsys, *words, "--seed", str(unseeded[0]["seed"])) == unseeded


def test_few_choices_are_greedy(run: Exported, capsys: pytest.CaptureFixture[str]) -> None:
    words = (run.train.parent, PROMPT, "--max-new-tokens", "9")
    (best,) = asked(capsys, *words, "--temperature", "0")
    for choice in (("--top-k", "1"), ("--top-p", "1e-9"), ("--temperature", "1e-6")):
        (found,) = asked(capsys, *words, *choice)
        assert found["tokens"] == best["tokens"], choice
    (free,) = asked(capsys, *words, "--seed", "3", "--temperature", "2")
    assert free["tokens"] != best["tokens"]


def begin(run: Path, started: float) -> None:
    (run / "attempts/001").mkdir(parents=True)
    (run / "attempts/001/attempt.json").write_text(json.dumps({"started": started}))


def test_a_run_has_many_names(
    run: Exported,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its export, its checkpoint and the newest run of the experiment are the same model."""
    project = tmp_path / "project"
    shutil.copytree(run.train.parents[4], project)
    own = project / "output/runs/small/000000000000"
    older = own.with_name("ffffffffffff")
    shutil.copytree(own, older)
    begin(older, 1.0)
    begin(own, 2.0)
    # It has saved nothing, so nothing of it can be sampled from.
    begin(own.with_name("eeeeeeeeeeee"), 3.0)
    shutil.copy(own / "run.json", own.with_name("eeeeeeeeeeee"))
    (older / "checkpoints").touch()
    monkeypatch.chdir(project)
    options = ("It", "--seed", "5", "--max-new-tokens", "6")
    names = ["small", "small/000000000000", str(own), str(own / "hf")]
    names.append(str(own / "checkpoints/iter_0000002"))
    found = []
    for name in names:
        generate.main([name, *options])
        text, about = capsys.readouterr()
        assert text.startswith("It")
        found.append(text)
        last = about.splitlines()[-1]
        assert "ffffffffffff" not in last
        assert last.endswith("float32 on cpu, seed 5")
    assert len(set(found)) == 1
    (own / "checkpoints/iter_0000003").mkdir()
    generate.main(["small/000000000000", *options])
    assert "iter_0000003 is newer: name it" in capsys.readouterr().err


def test_a_run_without_an_export_takes_its_newest_good_checkpoint(
    run: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = tmp_path / "project"
    shutil.copytree(run.train.parents[4], project)
    own = project / "output/runs/small/000000000000"
    (expected,) = asked(capsys, own, PROMPT, "--seed", "5")
    shutil.rmtree(own / "hf")
    (own / "checkpoints/iter_0000004").mkdir()
    generate.main([str(own), PROMPT, "--seed", "5"])
    text, about = capsys.readouterr()
    assert text == PROMPT + printable(expected["text"]) + "\n"
    assert "warning: iter_0000004 is skipped: " in about
    assert sorted(path.name for path in own.iterdir()) == ["checkpoints", "run.json", "train.json"]
    shutil.rmtree(own / "checkpoints/iter_0000002")
    with pytest.raises(CheckpointError, match=r"none of 1 checkpoints is good. Fix: "):
        generate.main([str(own), PROMPT])


def printable(text: str) -> str:
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def test_nothing_that_a_model_writes_steers_the_terminal(
    monkeypatch: pytest.MonkeyPatch, run: Exported, capsys: pytest.CaptureFixture[str]
) -> None:
    from primus.huggingface import sample

    one = sample.Sample(text="\x1b]0;x\x07\n\u202ea", tokens=[1], ended=True)
    monkeypatch.setattr(sample, "sample", lambda *_: [one, one])
    generate.main([str(run.directory), "é "])
    said = "é \\x1b]0;x\\x07\n\\u202ea"
    assert capsys.readouterr().out == f"--- 1 of 2\n{said}\n--- 2 of 2\n{said}\n"


def test_an_empty_prompt_begins_a_document(
    run: Exported, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (found,) = asked(capsys, run.directory, "", "--temperature", "0", "--max-new-tokens", "12")
    known = load_tokenizer(tokenizer).tokenizer().get_vocab_size()
    assert found["tokens"] == greedy(run, [TokenizerManifest.load(tokenizer).eod_id], known)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--max-new-tokens", "1000"], r"--max-new-tokens = 1000: .* 64 positions.* Fix: at most"),
        (["--temperature", "0", "--num-return-sequences", "2"], r"all are the same. Fix: "),
        (["--device", "warp"], r"--device = warp: .* Fix: "),
    ],
)
def test_what_cannot_be_done_is_one_line(run: Exported, words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        generate.main([str(run.directory), PROMPT, *words])
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(UserError, match=r"Fix: a shorter prompt"):
        generate.main([str(run.directory), PROMPT * 40])


@pytest.mark.parametrize("handling", ["strict", "surrogateescape"])
def test_a_prompt_of_another_encoding_is_one_line(
    run: Exported, monkeypatch: pytest.MonkeyPatch, handling: str
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO("été".encode("latin1")), "utf-8", handling)
    monkeypatch.setattr("sys.stdin", stdin)
    for prompt in ("-", "\udce9t\udce9"):
        with pytest.raises(UserError, match=r"^PROMPT: is not UTF-8: .*Fix: convert it"):
            generate.main([str(run.directory), prompt])


def test_a_changed_export_is_refused(run: Exported, tmp_path: Path) -> None:
    copy = tmp_path / "hf"
    shutil.copytree(run.directory, copy)
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"model\.safetensors: SHA-256"):
        generate.main([str(copy), PROMPT])


@pytest.fixture
def foreign(run: Exported, tmp_path: Path) -> Path:
    """A model that no manifest of ours vouches for."""
    copy = tmp_path / "foreign"
    shutil.copytree(run.directory, copy)
    (copy / "manifest.json").unlink()
    return copy


def test_a_model_of_others_works(
    foreign: Path, run: Exported, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (PROMPT, "--seed", "5")
    assert asked(capsys, foreign, *words) == asked(capsys, run.directory, *words)


def test_tensors_that_are_not_there_are_not_made_up(foreign: Path) -> None:
    tensors = load_file(foreign / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, foreign / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"1 tensors are missing .*layers\.1\.mlp\.down_proj.* Fix"):
        generate.main([str(foreign), PROMPT])


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_damaged_file_of_others_is_one_line(foreign: Path, name: str) -> None:
    (foreign / name).write_text("{")
    with pytest.raises(DataError) as error:
        generate.main([str(foreign), PROMPT])
    assert len(str(error.value).splitlines()) == 1
    assert "Fix: " in str(error.value)


def test_neither_pickles_nor_code_of_a_model_are_touched(
    foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = tmp_path / "ran"
    (foreign / "code.py").write_text(f"open({str(mark)!r}, 'w')\nclass C: pass\n")
    path = foreign / "config.json"
    classes = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.C", "AutoTokenizer": "code.C"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": classes}))
    assert asked(capsys, foreign, PROMPT)
    (foreign / "model.safetensors").rename(foreign / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"has no model\.safetensors.*other formats are not read"):
        generate.main([str(foreign), PROMPT])
    assert not mark.exists()
