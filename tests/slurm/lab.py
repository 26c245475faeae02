"""A real SLURM cluster on one machine, for as long as one command runs.

    python tests/slurm/lab.py --nodes 4 [--accounting] -- pytest tests/slurm

Controller, nodes and the command live in namespaces of their own (mount, pid, net). Each node has
a network and a host name of its own on one bridge, so that ranks on two nodes talk over a network.
When the command ends, whatever its end, the kernel takes all of it away: nothing runs on, and
two labs do not meet. Needs root and Debian's munge, slurmctld, slurmd, slurm-client and iproute2;
with --accounting slurmdbd and mariadb-server, too. No systemd, no cgroups, no Docker.

Inside, SLURM_LAB names the lab's directory, and the functions of this module act on the cluster.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

NETWORK = "10.77.0"
LOGIN = f"{NETWORK}.254"
CPUS = 16
MEMORY_MB = 64000
GPUS = 8
PROGRAMS = ("munged", "slurmctld", "slurmd", "sinfo", "ip", "unshare", "nsenter")
_UNSHARE = ("unshare", "--mount", "--pid", "--fork", "--net", "--mount-proc", "--kill-child")
ACCOUNTING_PROGRAMS = ("slurmdbd", "mariadbd", "mariadb-install-db", "sacctmgr")

_SLURM_CONF = """\
ClusterName=lab
SlurmctldHost=login({login})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits until the old credential has run out.
AuthInfo=socket={lab}/munge.socket,cred_expire=5
SlurmctldPort=6817
SlurmdPort=6818
StateSaveLocation={lab}/state
SlurmdSpoolDir={lab}/spool/%n
SlurmctldPidFile={lab}/slurmctld.pid
SlurmdPidFile={lab}/slurmd.%n.pid
SlurmctldLogFile={lab}/slurmctld.log
SlurmdLogFile={lab}/slurmd.%n.log
# Nodes claim more CPUs, memory and GPUs than the machine has.
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
MinJobAge={min_job_age}
KillWait=5
OverTimeLimit=0
InactiveLimit=0
SlurmctldTimeout=10
SlurmdTimeout=10
MessageTimeout=5
{accounting}
{nodes}
PartitionName=main Nodes=ALL Default=YES DefaultTime=10 MaxTime=24:00:00 PriorityTier=10
PartitionName=scavenge Nodes=ALL DefaultTime=10 MaxTime=24:00:00 PriorityTier=1 PreemptMode=REQUEUE
PartitionName=short Nodes=ALL DefaultTime=1 MaxTime=1 PriorityTier=10
"""
_ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=6819
AccountingStoragePass={lab}/munge.socket
AccountingStorageTRES=gres/gpu"""
_SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={lab}/munge.socket,cred_expire=5
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=6819
SlurmUser=root
LogFile={lab}/slurmdbd.log
PidFile={lab}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=6820
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Start the cluster, run the command on its login node, end both; the command's status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--accounting", action="store_true", help="slurmdbd, so that sacct works")
    parser.add_argument(
        "--min-job-age", type=int, default=600, help="seconds until it is forgotten"
    )
    parser.add_argument(
        "--if-possible", action="store_true", help="where none can be started, say why and end well"
    )
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("command", nargs="+")
    args = parser.parse_args(argv)
    if args.inside is not None:
        return _inside(args)
    reason = unavailable(accounting=args.accounting)
    if reason is not None:
        print(f"lab: no SLURM here: {reason}", file=sys.stderr)
        return 0 if args.if_possible else 2
    directory = tempfile.mkdtemp(prefix="slurm-lab-")
    # munged refuses a socket that others cannot reach.
    os.chmod(directory, 0o755)  # noqa: S103
    again = [
        sys.executable,
        __file__,
        "--inside",
        directory,
        *(sys.argv[1:] if argv is None else argv),
    ]
    try:
        return subprocess.run([*_UNSHARE, *again], check=False).returncode
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def unavailable(*, accounting: bool = False) -> str | None:
    """Why no cluster can be started here; None where one can."""
    if os.geteuid() != 0:
        return "needs root: it makes namespaces and network devices"
    programs = PROGRAMS + (ACCOUNTING_PROGRAMS if accounting else ())
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    done = subprocess.run([*_UNSHARE, "true"], capture_output=True, text=True, check=False)
    return f"no namespaces: {done.stderr.strip()}" if done.returncode != 0 else None


@dataclass(frozen=True)
class Lab:
    """The cluster that this process runs on."""

    directory: Path
    nodes: int

    @classmethod
    def here(cls) -> Lab:
        """The lab that `SLURM_LAB` names."""
        directory = Path(os.environ["SLURM_LAB"])
        return cls(directory, int((directory / "nodes").read_text()))

    def start_node(self, number: int) -> None:
        """Start the daemon of node `number`, from 1."""
        name = f"node{number}"
        (self.directory / "spool" / name).mkdir(parents=True, exist_ok=True)
        inner = f"hostname {name} && exec slurmd -N {name}"
        subprocess.run(
            ["nsenter", f"--net=/run/netns/{name}", "unshare", "--uts", "sh", "-c", inner],
            check=True,
        )

    def kill_node(self, number: int) -> None:
        """End the daemon of a node and every process that runs on it, as a power cut does."""
        network = os.stat(f"/run/netns/node{number}").st_ino
        for _ in range(20):
            victims = [pid for pid in _processes() if _network_of(pid) == network]
            if not victims:
                return
            for pid in victims:
                _kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        raise RuntimeError(f"processes of node{number} do not end: {victims}")

    def cut_network(self, number: int) -> None:
        """Pull a node's cable; what runs on it runs on."""
        subprocess.run(["ip", "link", "set", f"lab{number}", "down"], check=True)

    def mend_network(self, number: int) -> None:
        """Plug it in again."""
        subprocess.run(["ip", "link", "set", f"lab{number}", "up"], check=True)

    def stop_controller(self) -> None:
        """End the controller in order; killed, it would lose what it has not saved."""
        pid = int((self.directory / "slurmctld.pid").read_text())
        _kill(pid, signal.SIGTERM)
        wait(lambda: not _runs(pid), "slurmctld does not end")

    def start_controller(self, *options: str) -> None:
        """Start the controller."""
        command = ["unshare", "--uts", "sh", "-c", 'hostname login && exec slurmctld "$@"', "sh"]
        subprocess.run([*command, *options], check=True)

    def cancel_all(self) -> None:
        """End every job and wait until none is left."""
        subprocess.run(["scancel", "--user=root"], check=True)

        def none() -> bool:
            command = ["squeue", "-h"]
            return not subprocess.run(command, capture_output=True, text=True, check=True).stdout

        wait(none, "jobs do not end", seconds=60)

    def wait_ready(self) -> None:
        """Wait until every node is idle."""

        def idle() -> bool:
            command = ["sinfo", "-h", "-p", "main", "-t", "idle", "-o", "%D"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            return done.stdout.strip() == str(self.nodes)

        wait(idle, "the nodes are not idle")


def _inside(args: argparse.Namespace) -> int:
    lab = Lab(args.inside, args.nodes)
    (lab.directory / "nodes").write_text(str(args.nodes))
    _configure(lab, accounting=args.accounting, min_job_age=args.min_job_age)
    # The SLURM plugin's jobs drop SLURM_CONF, so the configuration lies where all look for it.
    Path("/etc/slurm").mkdir(exist_ok=True)
    for source, target in (
        (lab.directory / "etc", "/etc/slurm"),
        (lab.directory / "hosts", "/etc/hosts"),
    ):
        subprocess.run(["mount", "--bind", str(source), target], check=True)
    os.environ.pop("SLURM_CONF", None)
    os.environ["SLURM_LAB"] = str(lab.directory)
    _network(args.nodes)
    key = lab.directory / "munge.key"
    subprocess.run(
        [
            *("munged", f"--key-file={key}", f"--socket={lab.directory}/munge.socket"),
            *(f"--pid-file={lab.directory}/munged.pid", f"--log-file={lab.directory}/munged.log"),
            f"--seed-file={lab.directory}/munged.seed",
        ],
        check=True,
    )
    if args.accounting:
        _start_accounting(lab)
    lab.start_controller("-c")
    for number in range(1, args.nodes + 1):
        lab.start_node(number)
    lab.wait_ready()
    return subprocess.run(args.command, check=False).returncode


def _configure(lab: Lab, *, accounting: bool, min_job_age: int) -> None:
    directory = lab.directory
    for name in ("etc", "state", "spool", "devices"):
        (directory / name).mkdir()
    key = directory / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    # A GPU needs a device file; count-only GPUs register as none.
    for number in range(GPUS):
        os.mknod(directory / "devices" / f"gpu{number}", 0o20666, os.makedev(1, 3))
    names = [f"node{number}" for number in range(1, lab.nodes + 1)]
    hosts = ["127.0.0.1 localhost", f"{LOGIN} login"]
    hosts += [f"{NETWORK}.{number} {name}" for number, name in enumerate(names, start=1)]
    hosts.append(f"127.0.0.1 {os.uname().nodename}")
    (directory / "hosts").write_text("\n".join(hosts) + "\n")
    nodes = "\n".join(
        f"NodeName={name} NodeAddr={NETWORK}.{number} CPUs={CPUS} RealMemory={MEMORY_MB} "
        f"Gres=gpu:h100:{GPUS} State=UNKNOWN"
        for number, name in enumerate(names, start=1)
    )
    storage = (
        _ACCOUNTING.format(lab=directory)
        if accounting
        else "AccountingStorageType=accounting_storage/none"
    )
    (directory / "etc" / "slurm.conf").write_text(
        _SLURM_CONF.format(
            lab=directory, login=LOGIN, accounting=storage, nodes=nodes, min_job_age=min_job_age
        )
    )
    (directory / "etc" / "gres.conf").write_text(
        f"NodeName=node[1-{lab.nodes}] Name=gpu Type=h100 "
        f"File={directory}/devices/gpu[0-{GPUS - 1}]\n"
    )
    if accounting:
        conf = directory / "etc" / "slurmdbd.conf"
        conf.write_text(_SLURMDBD_CONF.format(lab=directory))
        conf.chmod(0o600)


def _network(nodes: int) -> None:
    """A bridge on which the login node and every node have an address."""
    Path("/run/netns").mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run/netns"], check=True)
    commands = [
        "link set lo up",
        "link add lab0 type bridge",
        f"addr add {LOGIN}/24 dev lab0",
        "link set lab0 up",
    ]
    for number in range(1, nodes + 1):
        name = f"node{number}"
        commands += [
            f"netns add {name}",
            f"link add lab{number} type veth peer name eth0 netns {name}",
            f"link set lab{number} master lab0 up",
            f"-n {name} addr add {NETWORK}.{number}/24 dev eth0",
            f"-n {name} link set eth0 up",
            f"-n {name} link set lo up",
        ]
    for command in commands:
        subprocess.run(["ip", *command.split()], check=True)


def _start_accounting(lab: Lab) -> None:
    data, socket = lab.directory / "database", lab.directory / "database.socket"
    subprocess.run(
        [
            *("mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}"),
            *("--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    with (lab.directory / "mariadb.log").open("w") as log:
        subprocess.Popen(
            [
                *("mariadbd", "--no-defaults", "--user=root", f"--datadir={data}"),
                *(f"--socket={socket}", "--bind-address=127.0.0.1", "--port=6820"),
                *("--skip-name-resolve", "--innodb-flush-log-at-trx-commit=0"),
                *("--innodb-lock-wait-timeout=900", "--performance-schema=0"),
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    client = ["mariadb", "--no-defaults", "-uroot", "-S", str(socket), "-e"]
    wait(lambda: _succeeds([*client, "select 1"]), "MariaDB does not answer")
    subprocess.run(
        [
            *client,
            "create database slurm_acct_db; "
            "create user slurm@'127.0.0.1' identified by 'slurm'; "
            "grant all on slurm_acct_db.* to slurm@'127.0.0.1'",
        ],
        check=True,
    )
    subprocess.run(["slurmdbd"], check=True)
    wait(lambda: _succeeds(["sacctmgr", "-n", "-i", "show", "cluster"]), "slurmdbd does not answer")
    for entry in (
        "cluster lab",
        "account train Description=t Organization=t",
        "user root account=train",
    ):
        command = ["sacctmgr", "-i", "-Q", "add", *entry.split()]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _succeeds(command: Sequence[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def wait(done: Callable[[], bool], complaint: str, seconds: float = 30.0) -> None:
    """Wait until `done()`, which is asked less often the longer it takes: asking costs, too.

    Raises:
        RuntimeError: it is not within `seconds`.
    """
    started = time.monotonic()
    while not done():
        waited = time.monotonic() - started
        if waited > seconds:
            raise RuntimeError(f"lab: {complaint} after {seconds:.0f} s")
        time.sleep(min(1.0, max(0.05, waited / 50)))


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _network_of(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino if _runs(pid) else None
    except OSError:
        return None


def _runs(pid: int) -> bool:
    """Whether it is there and no zombie: the first process of a namespace may be slow to reap."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _kill(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    sys.exit(main())
