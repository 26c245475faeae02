"""What the three stages make of a little text, once for all tests."""

from __future__ import annotations

import pytest
from small_text import Made, write_texts

from primus.dataset.build import DataRequest, build_data
from primus.dataset.make_tokenizer import TokenizerRequest, make_tokenizer
from primus.dataset.samples import SamplesRequest, build_samples
from primus.dataset.tokenizer import load_tokenizer


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """All three stages over the documents; tests must not write here."""
    root = tmp_path_factory.mktemp("made")
    texts = write_texts(root / "text")
    names = [str(path) for path in texts]
    tokenizer_path = root / "tokenizer" / "manifest.json"
    make_tokenizer(TokenizerRequest(data_path=names, vocab_size=300), tokenizer_path)
    tokenizer = load_tokenizer(tokenizer_path)
    data_path = root / "data" / "manifest.json"
    data = build_data(
        DataRequest(dataset="small", data_path=names, workers=1), tokenizer, data_path
    )
    samples_path = root / "samples" / "manifest.json"
    request = SamplesRequest(seq_length=16, split="90,8,2", seed=7)
    samples = build_samples(request, data_path, samples_path)
    return Made(root, texts, tokenizer_path, tokenizer, data_path, data, samples_path, samples)
