"""SLURM's words for how a job is: what each means for the pipeline, and for people."""

from __future__ import annotations

FAILED = frozenset(
    {
        *("BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
        *("REVOKED", "TIMEOUT"),
    }
)
# A job in one of these goes on by itself, or SLURM has not finished with it.
ALIVE = frozenset(
    {
        *("COMPLETING", "CONFIGURING", "PENDING", "RESIZING", "REQUEUED", "RESV_DEL_HOLD"),
        *("RUNNING", "SIGNALING", "SPECIAL_EXIT", "STAGE_OUT", "STOPPED", "SUSPENDED"),
    }
)
# Waits that nobody ends.
HELD = ("launch failed requeued held", "JobHoldMaxRequeue", "job requeued in held state")
# Waits for what the partition never gives; some clusters take such a job instead of refusing it.
NEVER = ("PartitionTimeLimit", "PartitionNodeLimit", "BadConstraints")

_WITH_RANKS = ("shapes", "tune", "train", "evaluate", "preflight", "ab")


def why(
    state: str,
    *,
    name: str,
    reason: str = "",
    by: str = "",
    limit: str = "",
    nodes: str = "",
    memory: str = "",
) -> str:
    """Why a job failed, and what to do: a sentence for people.

    Args:
        state: one of FAILED.
        name: of the job: its rule, a dot, its owner.
        reason: SLURM's word for why, where it has one.
        by: who cancelled it. limit: its time limit. nodes: where it ran. memory: per node.
    """
    # Of a check of the nodes the name is preflight_<experiment>.
    rule = name.partition(".")[0].partition("_")[0]
    ranks = rule in _WITH_RANKS
    match state:
        case "TIMEOUT":
            fix = f"raise slurm.{'time' if ranks else 'cpu_time'}"
            if rule == "train":
                fix = "raise slurm.warning_seconds: it was told too late to save before the end"
            if rule == "preflight":
                fix = "raise preflight.seconds"
            return f"TIMEOUT: its time limit of {limit or 'unknown length'} is over. Fix: {fix}"
        case "OUT_OF_MEMORY":
            key = "mem_mib" if ranks else "cpu_mem_mib"
            had = f" ({memory} per node)" if memory else ""
            fix = f"raise slurm.{key}" + ("; or lower micro_batch_size" if rule == "train" else "")
            return f"OUT_OF_MEMORY: it needed more memory than it had asked for{had}. Fix: {fix}"
        case "NODE_FAIL" | "BOOT_FAIL":
            fix = "type the same command again; slurm.exclude leaves a bad node out"
            return f"{state}: a node of {nodes or 'the job'} failed. Fix: {fix}"
        case "CANCELLED":
            who = f" by {by}" if by else ""
            goes_on = "begins it again" if rule == "ab" else "goes on where it stopped"
            return f"CANCELLED{who}. Fix: the same command {goes_on}"
        case "FAILED" if reason in ("", "None", "NonZeroExitCode"):
            return "its command failed"
    return f"{state} ({reason})" if reason and reason != "None" else state
