"""The evaluation of an export: which tokens are predicted from what, and the sums of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_trainer_export import Exported

from primus.artifacts.evaluation import EvaluationManifest
from primus.artifacts.tokens import TokenizerManifest
from primus.config.frozen import StageSettings
from primus.dataset.build import DataRequest, build_data
from primus.dataset.samples import SamplesRequest, build_samples
from primus.dataset.tokenizer import load_tokenizer
from primus.errors import DataError, PrimusError
from primus.evaluate import main
from primus.files import sha256_file
from primus.huggingface.load import LoadedModel, load_model
from primus.huggingface.score import score, windows

pytestmark = pytest.mark.usefixtures("single_rank", "eager")

SENTENCE = "It was the best of times, it was the worst of times."
EVALUATION: dict[str, Any] = {
    "texts": [],
    "json_key": "text",
    "max_length": None,
    "stride": None,
    "max_tokens": None,
    "lm_eval_tasks": [],
    "lm_eval_include_path": None,
    "lm_eval_num_fewshot": None,
    "lm_eval_limit": None,
    "batch_size": 4,
    "device": "cpu",
}


@pytest.mark.parametrize("length", [2, 5, 8])
@pytest.mark.parametrize("stride", [1, 2, 5, 8])
@pytest.mark.parametrize("count", [0, 1, 2, 4, 5, 6, 17, 40])
def test_windows_predict_every_token_once_with_enough_context(
    length: int, stride: int, count: int
) -> None:
    if stride > length:
        return
    ids = list(range(100, 100 + count))
    stream = [7, *ids]
    predicted: list[int] = []
    for window in windows(ids, 7, length, stride):
        assert len(window.inputs) <= length
        end = len(predicted) + len(window.targets)
        # What stands before the targets in the document, without a gap.
        assert window.inputs == stream[end - len(window.inputs) : end]
        assert stream[end] == window.targets[-1]
        context = len(window.inputs) - len(window.targets)
        assert context == min(len(predicted), length - len(window.targets))
        if predicted:
            assert len(window.targets) <= stride
        predicted += window.targets
    assert predicted == ids


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path, single_rank: None) -> Exported:
    torch.compiler.set_stance("force_eager")
    made = Exported(tmp_path_factory.mktemp("run"), tokenizer)
    torch.compiler.set_stance("default")
    made.export()
    return made


@pytest.fixture(scope="module")
def loaded(run: Exported) -> LoadedModel:
    return load_model(run.directory, torch.device("cpu"))


@torch.no_grad()
def by_megatron(run: Exported, before: int, ids: list[int], length: int, stride: int) -> float:
    """Nats of a document, one whole pass of Megatron's own model for each token."""
    stream, nats = [before, *ids], 0.0
    for place in range(len(ids)):
        # The end of the window in which this token is first reached.
        end = length if place < length else length - (length - place - 1) // stride * stride
        first = max(0, min(end, len(ids)) - length)
        tokens = torch.tensor([stream[first : place + 1]])
        positions = torch.arange(tokens.shape[1])[None]
        logits = run.megatron().eval()(tokens, positions, None)[0, -1].double()
        nats -= float(logits.log_softmax(0)[ids[place]])
    return nats


@pytest.mark.parametrize(("length", "stride"), [(64, 64), (16, 16), (16, 5), (16, 1)])
def test_the_loss_is_that_of_megatron(
    run: Exported, loaded: LoadedModel, tokenizer: Path, length: int, stride: int
) -> None:
    eod = TokenizerManifest.load(tokenizer).eod_id
    documents = [loaded.encode(text) for text in (SENTENCE, "Café", SENTENCE[3:])]
    expected = sum(by_megatron(run, eod, ids, length, stride) for ids in documents)
    found = score(loaded, documents, max_length=length, stride=stride, batch_size=3)
    assert found.tokens == sum(map(len, documents))
    assert found.nats == pytest.approx(expected, rel=1e-5)
    alone = score(loaded, documents, max_length=length, stride=stride, batch_size=1)
    assert alone.windows == found.windows
    assert alone.nats == pytest.approx(found.nats, rel=1e-6)


def test_what_cannot_be_predicted(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    how = {"max_length": 8, "stride": 8, "batch_size": 1}
    with pytest.raises(DataError, match="hold no text"):
        score(loaded, [[]], **how)
    with pytest.raises(DataError, match=r"has the id 512, the model knows those below 512"):
        score(loaded, [[512]], **how)
    monkeypatch.setattr("primus.huggingface.score._nats", lambda *_: torch.tensor(math.nan))
    with pytest.raises(PrimusError, match="not finite"):
        score(loaded, [[1, 2]], **how)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    root = tmp_path_factory.mktemp("samples")
    text = root / "text.txt"
    text.write_text("\n\f\n".join(f"{SENTENCE} {number}" for number in range(40)))
    made = load_tokenizer(tokenizer)
    data = root / "data/manifest.json"
    build_data(DataRequest(dataset="small", data_path=[str(text)], workers=1), made, data)
    path = root / "samples/manifest.json"
    build_samples(SamplesRequest(seq_length=32, split="80,20,0", seed=7), data, path)
    return path


def evaluated(run: Exported, samples: Path, output: Path, **values: Any) -> EvaluationManifest:
    settings = StageSettings(
        stage="evaluate",
        experiment="tiny",
        key="0" * 12,
        identity={},
        extent={"evaluation": EVALUATION | values},
        options={"seq_length": 32},
        upstream={},
    )
    settings.save(output.with_name("settings.json"))
    words = ["--settings", output.with_name("settings.json"), "--samples", samples]
    words += ["--export", run.directory / "manifest.json", "--output", output]
    main([str(word) for word in words])
    return EvaluationManifest.load(output)


def test_the_validation_share(run: Exported, samples: Path, tmp_path: Path) -> None:
    found = evaluated(run, samples, tmp_path / "eval.json")
    texts = [f"{SENTENCE} {number}" for number in range(32, 40)]
    assert (found.source, found.split, found.texts) == ("valid", "80,20,0", {})
    assert found.documents == 8
    assert found.bytes == sum(len(text.encode()) for text in texts)
    assert (found.max_length, found.stride) == (32, 32)
    assert (found.dtype, found.device) == ("float32", "cpu")
    assert found.checkpoint == "iter_0000002"
    assert found.export_sha256 == sha256_file(run.directory / "manifest.json")
    assert found.settings == {"evaluation": EVALUATION}
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    bits = found.loss * found.tokens / math.log(2)
    assert found.bits_per_byte == pytest.approx(bits / found.bytes)
    times = (tmp_path / "eval.json.times.jsonl").read_text().splitlines()
    assert [json.loads(line)["stage"] for line in times] == ["evaluate"]


def test_text_of_ones_own(
    run: Exported, loaded: LoadedModel, samples: Path, tmp_path: Path
) -> None:
    text = tmp_path / "held.jsonl"
    text.write_text(json.dumps({"body": SENTENCE}) + "\n")
    options = {"texts": [str(tmp_path / "h*.jsonl")], "json_key": "body"}
    found = evaluated(run, samples, tmp_path / "eval.json", stride=8, **options)
    ids = loaded.encode(SENTENCE)
    expected = score(loaded, [ids], max_length=32, stride=8, batch_size=1)
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert (found.tokens, found.windows) == (len(ids), expected.windows)
    assert (found.source, found.split, found.data_fingerprint) == ("texts", None, None)
    found.texts[str(text)].verify(text)
    few = evaluated(run, samples, tmp_path / "few.json", max_tokens=5, **options)
    assert (few.tokens, few.documents, few.windows) == (5, 1, 1)


def test_another_tokenizer_is_refused(run: Exported, samples: Path, tmp_path: Path) -> None:
    data = samples.parents[1] / "data/manifest.json"
    content = data.read_text()
    data.write_text(json.dumps(json.loads(content) | {"tokenizer_fingerprint": "another"}))
    try:
        with pytest.raises(DataError, match=r"but the samples have another\. Fix: "):
            evaluated(run, samples, tmp_path / "eval.json")
    finally:
        data.write_text(content)
    assert not (tmp_path / "eval.json").exists()
