"""What Megatron-core asks of a GPU is answered on a CPU."""

from __future__ import annotations

import importlib
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from primus.trainer import platform

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
    original = set(strings(compile(Path(module.__file__).read_text(), module.__file__, "exec")))
    loader = module.__loader__
    assert isinstance(loader, platform._Loader)
    found = original & set(platform._LITERALS)
    assert found, "the entry is not needed any more"
    wanted = (original - found) | {platform._LITERALS[text] for text in found}
    assert set(strings(loader.get_code(name))) == wanted


def test_other_modules_are_left_alone() -> None:
    module = importlib.import_module("megatron.core.transformer.mlp")
    assert not isinstance(module.__loader__, platform._Loader)


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


def test_every_answer_is_tested() -> None:
    tested = {"current_device", "synchronize", "get_rng_state", "set_rng_state", "manual_seed"}
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
