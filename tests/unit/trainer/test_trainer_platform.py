"""What Megatron-core asks of a GPU is answered on a CPU."""

from __future__ import annotations

import importlib
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from primus.errors import UnavailableError
from primus.train_rank import _take_device
from primus.trainer import platform
from primus.trainer.fully_sharded import _say_if_gathering_waits

MODULES = sorted(platform._REWRITTEN)


def strings(code: types.CodeType) -> Iterator[str]:
    """Every string constant of a module's code, nested functions included."""
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from strings(constant)
        elif isinstance(constant, tuple):
            yield from (item for item in constant if isinstance(item, str))
        elif isinstance(constant, str):
            yield constant


@pytest.mark.parametrize("name", MODULES)
def test_literals_of_a_module_are_rewritten(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__file__ is not None
    source = Path(module.__file__).read_text()
    original = set(strings(compile(source, module.__file__, "exec")))
    loader = module.__loader__
    assert isinstance(loader, platform._Loader)
    found = original & set(platform._LITERALS)
    assert found or "pin_memory=True" in source, "the entry is not needed any more"
    wanted = (original - found) | {platform._LITERALS[text] for text in found}
    assert set(strings(loader.get_code(name))) == wanted


def test_other_modules_are_left_alone() -> None:
    module = importlib.import_module("megatron.core.transformer.mlp")
    assert not isinstance(module.__loader__, platform._Loader)


def test_a_rank_takes_the_rotary_angles_of_its_chunks_without_pinned_memory() -> None:
    from megatron.core.models.common.embeddings.rope_utils import get_pos_emb_on_this_cp_rank

    group = types.SimpleNamespace(size=lambda: 2, rank=lambda: 1)
    angles = torch.arange(8.0).view(8, 1, 1, 1)
    own = get_pos_emb_on_this_cp_rank(angles, 0, group)
    assert own.flatten().tolist() == [2, 3, 4, 5]


def test_buffers_lie_on_the_cpu() -> None:
    assert torch.cuda.current_device() == torch.device("cpu")
    assert torch.zeros(1, device=torch.cuda.current_device()).device.type == "cpu"


def test_synchronize_has_nothing_to_wait_for() -> None:
    assert torch.cuda.synchronize() is None


def test_a_tensor_stays_where_it_is() -> None:
    tensor = torch.ones(2)
    assert tensor.cuda() is tensor
    assert tensor.cuda(torch.cuda.current_device(), non_blocking=True) is tensor


def test_generator_states_are_those_of_the_cpu() -> None:
    state = torch.cuda.get_rng_state()
    first = torch.rand(3)
    torch.cuda.set_rng_state(state)
    assert torch.equal(torch.rand(3), first)


def test_manual_seed_seeds_the_cpu() -> None:
    torch.cuda.manual_seed(5)
    first = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), first)


def test_streams_have_nothing_to_wait_for() -> None:
    stream = torch.cuda.Stream()
    assert stream.wait_stream(torch.cuda.current_stream()) is None
    with torch.cuda.stream(stream):
        event = stream.record_event()
    assert event.synchronize() is None


def test_token_counts_become_numpy_where_sizes_are_wanted() -> None:
    from megatron.core.transformer.moe import token_dispatcher

    counts = torch.tensor([3, 0, 2])
    sizes = token_dispatcher.maybe_move_tensor_to_cpu(counts, as_numpy=True)
    assert isinstance(sizes, np.ndarray)
    assert sizes.tolist() == [3, 0, 2]
    assert token_dispatcher.maybe_move_tensor_to_cpu(counts, record_stream=True) is counts
    assert token_dispatcher.maybe_move_tensor_to_cpu(None, as_numpy=True) is None


def test_every_answer_is_tested() -> None:
    tested = {"current_device", "synchronize", "get_rng_state", "set_rng_state", "manual_seed"}
    tested |= {"Stream", "current_stream", "stream"}
    assert set(platform._ANSWERS) == tested
    for name in tested:
        assert getattr(torch.cuda, name) is platform._ANSWERS[name]


def test_a_fork_draws_from_its_own_state() -> None:
    from megatron.core.tensor_parallel.random import CudaRNGStatesTracker

    tracker = CudaRNGStatesTracker()
    torch.manual_seed(1)
    tracker.add("own", 7)
    outer = torch.get_rng_state()
    with tracker.fork("own"):
        first = torch.rand(4)
    assert torch.equal(torch.get_rng_state(), outer), "the outer generator did not move"
    drawn = []

    def fail() -> None:
        with tracker.fork("own"):
            drawn.append(torch.rand(4))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.equal(torch.get_rng_state(), outer), "nor after an error"
    torch.manual_seed(7)
    assert torch.equal(torch.rand(8), torch.cat((first, *drawn))), "the state goes on"


def test_megatron_imported_before_is_refused() -> None:
    program = (
        # In place of an import of Megatron-core, which takes ten seconds on a busy machine.
        "import sys, types\n"
        "sys.modules['megatron.core.utils'] = types.ModuleType('megatron.core.utils')\n"
        "from primus.trainer.platform import install\n"
        "install('cpu')\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode != 0
    assert "imported before the platform was installed" in result.stderr
    assert "megatron.core.utils" in result.stderr


def test_another_platform_is_refused() -> None:
    with pytest.raises(RuntimeError, match="platform cpu is installed already, not cuda"):
        platform.install("cuda")


def test_installing_twice_changes_nothing() -> None:
    finders = list(sys.meta_path)
    assert platform.install("cpu") == torch.device("cpu")
    assert sys.meta_path == finders


def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UnavailableError, match=r"nproc_per_node = 8: torch sees 1 GPUs here\. Fix"):
        _take_device()
    used: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    _take_device()
    assert used == [1]


@pytest.mark.parametrize(
    ("device", "queues", "said"), [("cuda", "1", 1), ("cuda", "8", 0), ("cpu", "1", 0)]
)
def test_one_queue_for_weights_that_are_gathered_is_said(
    device: str,
    queues: str,
    said: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", queues)
    _say_if_gathering_waits(torch.device(device))
    assert [record.message.count("use_torch_fsdp2") for record in caplog.records] == [1] * said
