"""One node's part of a job on several: what srun starts on each of them, once.

    srun --nodes=2 --ntasks-per-node=1 … python -m primus.node --nproc-per-node 8 \\
        --log-dir LOGS --module primus.train_rank -- ARGUMENTS

becomes the node's agent, `primus.agent`, in a container where there is one. All nodes meet at the
first of the step's node list, on MASTER_PORT.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from primus.container.spec import Container, python
from primus.errors import UnavailableError, run_main
from primus.ranks.places import node_directory

# Slurm's own words for the place of a step's task.
_NODES, _NODE, _LIST = "SLURM_STEP_NUM_NODES", "SLURM_NODEID", "SLURM_STEP_NODELIST"
# By which gloo, and NCCL or RCCL, are told a node's network. NCCL takes a bare name for a prefix.
_INTERFACES = {"GLOO_SOCKET_IFNAME": "{}", "NCCL_SOCKET_IFNAME": "={}"}
_ANY_PORT = 9


def main(argv: Sequence[str] | None = None) -> None:
    """Become the agent of this node.

    Raises:
        UnavailableError: this is no task of a SLURM step, or its first node has no address.
    """
    parser = argparse.ArgumentParser(
        prog="python -m primus.node",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--nproc-per-node", type=int, required=True, help="ranks on this node")
    parser.add_argument("--log-dir", type=Path, required=True, help="of the ranks' output")
    parser.add_argument("--module", required=True, help="what each rank runs, as in python -m")
    parser.add_argument("--imports", default="", help="what its agent imports for all ranks")
    parser.add_argument("--container", type=Container.from_json, help="in which they run; JSON")
    parser.add_argument("arguments", nargs="*", help="its command line")
    args = parser.parse_args(argv)
    # SLURM warns every process of the job before its time is over. The ranks know what to do.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    imports = ["--imports", args.imports] if args.imports else []
    ranks = ["--module", args.module, *imports, "--", *args.arguments]
    arguments = agent(os.environ, args.nproc_per_node, args.log_dir, ranks)
    command = python(args.container, arguments)
    # What is on one node stays there.
    several = os.environ[_NODES] != "1"
    chosen = interfaces(_address(first_node(os.environ[_LIST]))) if several else {}
    variables = {**chosen, **os.environ}
    os.execvpe(command[0], command, variables)  # noqa: S606  # an argument list, no shell


def agent(
    environment: Mapping[str, str],
    nproc_per_node: int,
    log_directory: Path,
    ranks: Sequence[str],
) -> list[str]:
    """What Python runs on this node: its agent.

    Args:
        environment: of a task of a SLURM step, with MASTER_PORT.
        log_directory: every node writes into a directory of its own in it.
        ranks: the agent's words on what they run.

    Raises:
        UnavailableError: a variable of the step is missing, or its first node has no address.
    """
    missing = [n for n in (_NODES, _NODE, _LIST, "MASTER_PORT") if n not in environment]
    if missing:
        raise UnavailableError(
            f"{', '.join(missing)}: not set: this is no task of a SLURM step. "
            "Fix: let the train stage start it, inside a job"
        )
    node, nodes = environment[_NODE], environment[_NODES]
    return [
        *("-u", "-m", "primus.agent", "--nnodes", nodes, "--node-rank", node),
        *("--nproc-per-node", str(nproc_per_node)),
        *("--master-addr", _address(first_node(environment[_LIST]))),
        *("--master-port", environment["MASTER_PORT"]),
        *("--log-dir", str(log_directory / node_directory(int(node)))),
        *ranks,
    ]


def interfaces(address: str) -> dict[str, str]:
    """Variables that name the network by which this node reaches another one.

    Nothing where that is the loopback device, or no device of this node.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as unsent:
            # Of a datagram socket this only asks the kernel for the route.
            unsent.connect((address, _ANY_PORT))
            own = str(unsent.getsockname()[0])
    except OSError:
        return {}
    for name, addresses in psutil.net_if_addrs().items():
        if name != "lo" and own in {found.address.partition("%")[0] for found in addresses}:
            return {variable: form.format(name) for variable, form in _INTERFACES.items()}
    return {}


def first_node(nodes: str) -> str:
    """The first of a list such as `gpu[03-07,12]`; asks nobody: in an image there is no SLURM.

    Raises:
        UnavailableError: the list is empty.
    """
    first = re.match(r"(?:[^,\[\]]|\[[^\]]*\])+", nodes)
    if first is None:
        raise UnavailableError(
            f"{nodes!r}: is no list of nodes. Fix: run inside a job of this cluster"
        )
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0])


def node_names(nodes: str) -> list[str]:
    """All of a list such as `gpu[03-07,12]`, as SLURM itself expands it.

    Raises:
        UnavailableError: SLURM cannot read the list.
    """
    done = subprocess.run(
        ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=False
    )
    names = done.stdout.split()
    if done.returncode != 0 or not names:
        raise UnavailableError(
            f"{nodes}: scontrol cannot read this list of nodes: {done.stderr.strip()}. "
            "Fix: run inside a job of this cluster"
        )
    return names


def _address(host: str) -> str:
    """Its address, by which every node reaches it: names may differ between nodes."""
    try:
        return str(socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP)[0][4][0])
    except socket.gaierror as error:
        raise UnavailableError(
            f"{host}: the first node of the job has no address here: {error.strerror}. "
            "Fix: mend the nodes' name service"
        ) from error


if __name__ == "__main__":
    run_main(main)
