"""Numbers of parameters, exact, from settings alone."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from config_root import REPOSITORY

from primus.config.layout import layers_of_stages, layers_per_stage
from primus.config.load import experiments, load
from primus.config.parameters import Parameters, parameters, rank_parameters
from primus.config.schema.settings import Settings

MODELS = {
    path.stem: yaml.safe_load(path.read_text())
    for path in sorted((REPOSITORY / "configs/models").glob("*.yaml"))
}
PUBLISHED = {
    name: values["published_parameters"]
    for name, values in MODELS.items()
    if "published_parameters" in values
}
# Of the Hugging Face model, without multi-token prediction.
NINE = {
    "llama2_7B": 6_738_415_616,
    "llama2_70B": 68_976_648_192,
    "llama3_8B": 8_030_261_248,
    "llama3_70B": 70_553_706_496,
    "llama3.1_8B": 8_030_261_248,
    "llama3.1_70B": 70_553_706_496,
    "deepseek_v2_lite": 15_706_484_224,
    "deepseek_v2": 235_741_434_880,
    "deepseek_v3": 671_026_419_200,
}


def settings(name: str, **changes: Any) -> Settings:
    """The settings of a shipped experiment with changes that nobody checks."""
    return load(name, root=REPOSITORY, stages=()).settings.model_copy(update=changes)


def count(name: str) -> Parameters:
    """The parameters of a shipped model."""
    (experiment, *_) = (x for x in experiments(REPOSITORY) if settings(x).model == name)
    return parameters(settings(experiment))


def test_the_published_numbers_stand_beside_the_models() -> None:
    assert NINE.items() <= PUBLISHED.items()


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_full_size_model_has_the_published_number(name: str) -> None:
    assert count(name).total == PUBLISHED[name]


def test_the_parts_of_deepseek_v3() -> None:
    """From the dimensions in its technical report (arXiv:2412.19437, section 4.2)."""
    found = count("deepseek_v3")
    expert = 3 * 7168 * 2048
    assert found.by_part["experts"] == 58 * 256 * expert
    assert found.by_part["shared_experts"] == 58 * expert
    assert found.by_part["dense_ffn"] == 3 * 3 * 7168 * 18432
    assert found.by_part["router"] == 58 * (256 * 7168 + 256)
    assert found.by_part["embedding"] == found.by_part["output"] == 129280 * 7168
    assert found.active == found.total - 58 * 248 * expert == 37_552_297_472
    # Two norms of its inputs, their projection, a layer with experts, a norm.
    layer = found.by_part["attention"] // 61 + 257 * expert + 256 * 7168 + 256
    layer += 2 * 7168 + 1536 + 512
    assert found.multi_token_prediction == 3 * 7168 + 2 * 7168 * 7168 + layer


@pytest.mark.parametrize("name", ["llama2_7B", "llama3.1_70B"])
def test_every_parameter_of_a_dense_model_is_active(name: str) -> None:
    assert count(name).active == count(name).total


def summed(s: Settings) -> int:
    """Parameters of one rank of each stage together."""
    return sum(rank.total for rank in rank_parameters(s))


def test_pipeline_stages_hold_the_model_between_them() -> None:
    whole = parameters(settings("llama3_8B")).total
    for changes in (
        {"pipeline_model_parallel_size": 4},
        {"pipeline_model_parallel_size": 4, "virtual_pipeline_model_parallel_size": 4},
        {"pipeline_model_parallel_size": 3, "decoder_last_pipeline_num_layers": 10},
        {
            "pipeline_model_parallel_size": 4,
            "decoder_first_pipeline_num_layers": 7,
            "decoder_last_pipeline_num_layers": 5,
        },
    ):
        s = settings("llama3_8B", **changes)
        held = sorted(layer for stage in layers_of_stages(s) for layer in stage)
        assert held == list(range(32))
        assert tuple(map(len, layers_of_stages(s))) == layers_per_stage(s)
        assert summed(s) == whole


def test_chunks_of_the_interleaved_schedule_take_turns() -> None:
    changes = {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2}
    s = settings("llama3_8B", num_layers=8, **changes)
    assert layers_of_stages(s) == ((0, 1, 4, 5), (2, 3, 6, 7))


def test_tensor_parallel_ranks_copy_norms_and_pad_the_vocabulary() -> None:
    s = settings("llama3_8B", tensor_model_parallel_size=4, make_vocab_size_divisible_by=128)
    (rank,) = rank_parameters(s)
    norms = (2 * 32 + 1) * 4096
    padded = 128512
    tables = 2 * 4096 * (padded - 128256)
    assert rank.total == (parameters(s).total - norms + tables) // 4 + norms
    assert rank.by_part["embedding"] == padded * 4096 // 4


def test_experts_divide_among_their_own_ranks() -> None:
    s = settings(
        "deepseek_v2_lite",
        tensor_model_parallel_size=2,
        expert_model_parallel_size=8,
        expert_tensor_parallel_size=1,
    )
    (rank,) = rank_parameters(s)
    assert rank.expert == rank.by_part["experts"] == parameters(s).by_part["experts"] // 8
    assert rank.by_part["shared_experts"] == parameters(s).by_part["shared_experts"] // 2
    assert rank.by_part["router"] == parameters(s).by_part["router"]


def test_the_last_stage_copies_the_tables_that_it_shares_with_the_first() -> None:
    s = settings("deepseek_v3_tiny", pipeline_model_parallel_size=2)
    first, last = rank_parameters(s)
    table = 2048 * 128
    assert first.by_part["embedding"] == last.by_part["embedding"] == table
    assert last.by_part["output"] == table
    buffers = 16
    assert last.by_part["mtp"] == parameters(s).multi_token_prediction - buffers
    tied = settings("llama3_8B_tiny", untie_embeddings_and_output_weights=False)
    assert summed(tied) == parameters(tied).total
    apart = tied.model_copy(update={"pipeline_model_parallel_size": 2})
    assert summed(apart) == parameters(tied).total + table
