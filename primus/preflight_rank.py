"""One rank of the checks of a job's nodes: `primus.preflight_step` starts it on every device.

It checks its device alone, then with the others: all ranks of its node, then of its node and
another one, in rounds. The ranks talk through the job's store, never in one group of all: one that
hangs or cannot be reached is missed after a time limit, and named. What each is at stands in a
file of its own, for the case that the first rank, which collects, is the one that hangs.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import platform
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from primus.artifacts.preflight import LinkReport, RankReport
from primus.config.frozen import StageSettings, add_settings_arguments, load_settings
from primus.errors import run_main
from primus.files import atomic_write

if TYPE_CHECKING:
    import torch
    from torch.distributed.distributed_c10d import Store

RANKS: TypeAdapter[list[RankReport]] = TypeAdapter(list[RankReport])
LINKS: TypeAdapter[list[LinkReport]] = TypeAdapter(list[LinkReport])
RESULT = "ranks.json"
# Rounds of pairs: with four, a healthy node is taken for slow only if all its partners are.
_ROUNDS = 4
# Shares of the time limit: for all ranks to start and to check themselves, and for one collective.
_START, _COLLECTIVE = 0.4, 0.05
# Smaller on CPUs, where a device has no clock to be brought up to.
_GEMM_SIZES = {"cpu": (1024,), "cuda": None}
# Variables that must be equal on all ranks, and those of them that may name a node's own things.
_EQUAL = ("NCCL_", "RCCL_", "GLOO_", "UCX_", "FI_", "TORCH_NCCL_", "NVTE_", "HSA_")
_OWN = ("NCCL_HOSTID", "NCCL_TOPO_FILE")


def main(argv: Sequence[str] | None = None) -> None:
    """Check, and on the first rank write what all have found."""
    parser = argparse.ArgumentParser(prog="python -m primus.preflight_rank", description=__doc__)
    add_settings_arguments(parser)
    parser.add_argument("--directory", type=Path, required=True, help="for what was found")
    args = parser.parse_args(argv)
    settings = load_settings(args, "train")
    limit = settings.preflight.seconds
    # It says where it hangs. Not a thread of Python's: a library may hang without letting it run.
    faulthandler.dump_traceback_later(limit, exit=True)
    own = _Own(args.directory)
    own.check(partial(_check_alone, settings, own))
    store, rank, world = _meet(limit)
    links = _check_links(settings, own, store) if world > 1 else []
    own.set(stage="done")
    if rank:
        _hand_over(store, rank, own.report(), links)
    else:
        _collect(store, world, own.report(), links, args.directory, limit)
    faulthandler.cancel_dump_traceback_later()


class _Own:
    """This rank's report, kept in a file as it grows."""

    def __init__(self, directory: Path) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.node = int(os.environ.get("GROUP_RANK", "0"))
        self.local = int(os.environ.get("LOCAL_RANK", "0"))
        self._directory = directory
        self._values: dict[str, Any] = {
            "rank": self.rank,
            "node": self.node,
            "host": os.uname().nodename,
            "local_rank": self.local,
            "stage": "started",
        }
        self.set()

    def set(self, **values: Any) -> None:
        """Add to the report."""
        self._values |= values
        with atomic_write(self._directory / f"rank{self.rank:05d}.json") as stream:
            stream.write(self.report().model_dump_json())

    def check(self, work: Callable[[], None]) -> None:
        """Do some of the checks; a failure of torch or of the device goes into the report."""
        try:
            work()
        except (OSError, RuntimeError, AssertionError, ImportError) as error:
            self.set(error=f"{self._values['stage']}: {first_line(error)}")

    def report(self) -> RankReport:
        """As it is now."""
        return RankReport(**self._values)


def first_line(error: BaseException) -> str:
    """What an error says, without the stack that torch appends."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _check_alone(settings: StageSettings, own: _Own) -> None:
    import torch

    from primus.artifacts.provenance import cpu_model
    from primus.gemm.peak import measure_peak
    from primus.health import devices

    own.set(stage="device", software=_software(), variables=_variables())
    torch.set_num_threads(settings.threads_per_rank)
    device = _device(settings, own)
    if device.type == "cuda":
        free, total = devices.memory_gib(device)
        name = torch.cuda.get_device_name(device)
        own.set(device=name, devices=torch.cuda.device_count(), free_gib=free, memory_gib=total)
    else:
        own.set(device=cpu_model())
    # The type of the run's weights, as primus.trainer.model has it; that imports Megatron-core.
    half = torch.bfloat16 if settings.bf16 else torch.float16
    dtype = half if settings.bf16 or settings.fp16 else torch.float32
    own.set(stage="product")
    product, repeatable = devices.product(dtype, device)
    own.set(stage="gemm", product=product, repeatable=repeatable)
    own.set(tflops=measure_peak(dtype, device.type, _GEMM_SIZES[device.type]))


def _device(settings: StageSettings, own: _Own) -> torch.device:
    import torch

    if settings.platform == "cpu":
        return torch.device("cpu")
    found = torch.cuda.device_count()
    if own.local >= found:
        raise RuntimeError(f"torch sees {found} GPUs here")
    torch.cuda.set_device(own.local)
    return torch.device("cuda", own.local)


def _software() -> dict[str, str]:
    import torch

    found = {"torch": torch.__version__, "python": platform.python_version()}
    if torch.cuda.is_available() and torch.distributed.is_nccl_available():
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    return found


def _variables() -> dict[str, str]:
    names = (n for n in sorted(os.environ) if n.startswith(_EQUAL) and n not in _OWN)
    return {name: os.environ[name] for name in names}


def _meet(limit: float) -> tuple[Store, int, int]:
    """The job's store, this rank and their number."""
    from torch._C._distributed_c10d import HashStore
    from torch.distributed.rendezvous import rendezvous

    if "MASTER_ADDR" not in os.environ:
        return HashStore(), 0, 1
    seconds = timedelta(seconds=limit * _START)
    store, rank, world = next(iter(rendezvous("env://", timeout=seconds)))
    return store, rank, world


def _check_links(settings: StageSettings, own: _Own, store: Store) -> list[LinkReport]:
    """What this rank reports of the groups of which it is the first; all ranks call it."""
    from primus.health.collectives import rounds

    local, nodes = settings.nproc_per_node, settings.nodes
    limit = settings.preflight.seconds
    fit = not own.report().error
    if fit:
        own.set(stage="inside")
    absent = _absent(store, own, fit, local, nodes, limit * _START)
    if own.node in absent:
        return []
    alone: list[tuple[int, ...]] = [(node,) for node in range(nodes)] if local > 1 else []
    plan = [alone, *rounds(nodes, _ROUNDS)]
    found = []
    for number, groups in enumerate(plan):
        mine = next((group for group in groups if own.node in group), None)
        if mine is not None and not absent.intersection(mine):
            ranks = [node * local + one for node in mine for one in range(local)]
            link = _measure(settings, own, store, number, mine, ranks)
            if own.rank == ranks[0]:
                found.append(link)
        # A pair that fails takes its two nodes all of a collective's time, twice at worst.
        present = local * (nodes - len(absent))
        if not _all_there(store, f"after{number}", present, 3 * limit * _COLLECTIVE):
            break
        own.set(stage="between")
    return found


def _measure(
    settings: StageSettings,
    own: _Own,
    store: Store,
    number: int,
    nodes: Sequence[int],
    ranks: Sequence[int],
) -> LinkReport:
    from primus.health.collectives import measure

    limit, speed, error = settings.preflight.seconds * _COLLECTIVE, None, ""
    name = f"round{number}.{'-'.join(map(str, nodes))}"
    try:
        speed = measure(store, name, own.rank, ranks, _device(settings, own), limit)
    except RuntimeError as failed:
        error = first_line(failed)
    return LinkReport(nodes=list(nodes), round=number, gb_per_second=speed, error=error)


def _absent(store: Store, own: _Own, fit: bool, local: int, nodes: int, seconds: float) -> set[int]:
    """Nodes with a rank that is not fit, or that has not come within `seconds`."""
    if not fit:
        store.set(f"unfit{own.node}", "")
    store.set(f"here{own.rank}", "")
    everybody = _all_there(store, "ready", local * nodes, seconds)
    found = {node for node in range(nodes) if store.check([f"unfit{node}"])}
    if not everybody:
        for node in range(nodes):
            ranks = range(node * local, (node + 1) * local)
            if not store.check([f"here{rank}" for rank in ranks]):
                found.add(node)
    return found


def _all_there(store: Store, name: str, number: int, seconds: float) -> bool:
    """Wait for `number` ranks; False where they have not come within `seconds`."""
    if store.add(f"{name}.count", 1) >= number:
        store.set(f"{name}.all", "")
        return True
    return _wait(store, f"{name}.all", seconds)


def _wait(store: Store, key: str, seconds: float) -> bool:
    try:
        store.wait([key], timedelta(seconds=max(seconds, 0.01)))
    except RuntimeError:
        return False
    return True


def _hand_over(store: Store, rank: int, report: RankReport, links: Sequence[LinkReport]) -> None:
    content = report.model_dump_json(), LINKS.dump_json(list(links)).decode()
    store.set(f"report{rank}", "\n".join(content))


def _collect(
    store: Store,
    world: int,
    report: RankReport,
    links: Sequence[LinkReport],
    directory: Path,
    limit: float,
) -> None:
    """Take what the others have found, and write all of it down."""
    reports, found = [report], list(links)
    end = time.monotonic() + 2 * limit * _COLLECTIVE
    for rank in range(1, world):
        if _wait(store, f"report{rank}", end - time.monotonic()):
            first, second = store.get(f"report{rank}").decode().split("\n", 1)
            reports.append(RankReport.model_validate_json(first))
            found += LINKS.validate_json(second)
    with atomic_write(directory / RESULT) as stream:
        stream.write(RANKS.dump_json(reports).decode() + "\n" + LINKS.dump_json(found).decode())


if __name__ == "__main__":
    run_main(main)
