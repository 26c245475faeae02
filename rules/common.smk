# The only file with functions: experiments, paths and keys. What is here stays thin; the work is
# in primus/config, which has types and tests.
import json
import os
import sys
from dataclasses import replace
from functools import wraps
from pathlib import Path

# Commands run with the Python that runs Snakemake, also where its environment is not active.
os.environ.update(PATH=os.pathsep.join([os.path.dirname(sys.executable), *os.get_exec_path()]))
sys.path.insert(0, os.getcwd())

from primus import driver
from primus.config import announce, cluster, extent as extents, paths, pipeline, sweep_names
from primus.config import arguments, text_files
from primus.errors import PrimusError, fail
from primus.files import is_older, sha256_file
from primus.reports.comparison import asked

driver.arrive(sys.argv[1:])
# What is left of the configuration is of the experiments.
COMPARISON = asked.Asked(asked.take(config, sys.argv[1:]))
SWEPT = sweep_names.take(config, sys.argv[1:])
SWEEPS = sweep_names.sweeps()
PIPELINE = pipeline.Pipeline(config, sweeps=SWEPT)
ANNOUNCER = announce.Announcer(sys.argv[1:])


onstart:
    driver.hold(sys.argv[1:])


onsuccess:
    driver.leave()


onerror:
    driver.leave()


# Only for --software-deployment-method apptainer. What ranks run in is the hardware's `container`.
container: "docker://python:3.11"


wildcard_constraints:
    experiment=r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}",
    dataset=r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}",
    comparison=r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}",
    sweep=r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}",
    owner=r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}",
    stage=r"[a-z]+",
    key=r"[0-9a-f]{12}",
    digest=r"[0-9a-f]{12}",


def or_fail(function):
    """Turn a mistake of the user into its one line: SystemExit passes Snakemake untouched."""

    @wraps(function)
    def guarded(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except PrimusError as error:
            fail(error)

    return guarded


@or_fail
def wanted_experiments():
    """Every experiment that this call can ask for by the name of a target."""
    names = PIPELINE.names()
    arguments.refuse_two(sys.argv[1:])
    pipeline.check_targets(sys.argv[1:], names, SWEEPS)
    default = [name for name in names if name == DEFAULT_TARGET[1]]
    return dict.fromkeys(pipeline.mentioned(sys.argv, names) + default)


MEANING = pipeline.MEANING
DEFAULT_TARGET = ("train", "llama3_8B_tiny")
EXPERIMENTS = wanted_experiments()
TARGETS = [(kind, name) for name in EXPERIMENTS for kind in pipeline.TARGETS]


def describe(rule, meaning):
    """What --list-rules says; from Python 3.12 on no f-string parses as a docstring."""
    workflow.get_rule(rule).docstring = meaning


def wanted(kind, experiment):
    """The input of a target; the experiment is loaded and checked only when it is asked for."""

    def files(wildcards):
        found = PIPELINE.target(kind, experiment)
        ANNOUNCER.announce(kind, PIPELINE.plan(experiment, kind))
        return found

    return or_fail(files)


def plan_of(stage, wildcards):
    """The experiment for which a stage runs, by the path of what the stage makes."""
    owner = getattr(wildcards, paths.owner_kind(stage))
    return PIPELINE.by_key(stage, owner, wildcards.key)


def of_digest(value):
    """`value` of the plan whose settings are to be frozen (untracked, see options)."""

    def found(wildcards, output):
        return value(PIPELINE.by_digest(wildcards.stage, wildcards.owner, wildcards.digest))

    return or_fail(found)


def frozen(stage, reader):
    """The frozen settings of `stage` in the experiment for which `reader` runs."""

    def path(wildcards):
        made = plan_of(reader, wildcards).stages[stage]
        before = extents.elsewhere(made, PIPELINE.root) if stage == reader else None
        if before is not None:
            force(paths.artifact(made))
            ANNOUNCER.announce_extent(made, before)
        return paths.settings_file(made)

    return or_fail(path)


def frozen_for_ab(wildcards):
    """The frozen settings of the training that a comparison of kernels takes segments of."""
    plan = plan_of("train", wildcards)
    made = plan.stages["train"]
    if extents.is_other_comparison(plan.settings.ab, PIPELINE.root / paths.ab(made)):
        force(paths.ab(made))
    return paths.settings_file(made)


def frozen_for_report(wildcards):
    """As `frozen`. What was compared since is no input: no report is to ask for a comparison."""
    plan = plan_of("report", wildcards)
    force_if_older(paths.artifact(plan.stages["report"]), PIPELINE.compared(plan))
    return frozen("report", "report")(wildcards)


def runs_compared(wildcards):
    """What is declared of the runs that are compared."""
    name = wildcards.comparison
    force_if_older(f"output/compare/{name}.html", COMPARISON.growing(name))
    return COMPARISON.identities(name)


def force_if_older(made, files):
    """Have it made again after files that are no inputs."""
    if is_older(Path(made), map(Path, files)):
        force(made)


def force(made):
    """Have it made, as --forcerun does, whatever Snakemake's record of the job says."""
    workflow.dag.forcefiles.add(made)


def made_by(stage, reader):
    """What `stage` makes; nothing where the experiment does without the stage."""

    def path(wildcards):
        plan = plan_of(reader, wildcards)
        return paths.artifact(plan.stages[stage]) if plan.runs(stage) else []

    return or_fail(path)


def evaluation_for(reader):
    """The evaluation of the run; nothing where there is none, and none is asked for."""

    def path(wildcards):
        plan = plan_of(reader, wildcards)
        if not PIPELINE.evaluates(plan, sys.argv):
            return []
        run_alone(reader)
        return paths.artifact(plan.stages["evaluate"])

    return or_fail(path)


def run_alone(stage):
    """Have a stage be a job of its own, whatever --groups say.

    The evaluation takes a GPU, which the export and the report do not: it is a job between these
    two, and Snakemake refuses a group that another job interrupts.
    """
    settings = workflow.group_settings
    groups = {rule: group for rule, group in settings.overwrite_groups.items() if rule != stage}
    workflow.group_settings = replace(settings, overwrite_groups=groups)


def files_for(stage):
    """The files of the user that `stage` reads: text, or a model."""
    return or_fail(lambda wildcards: PIPELINE.files(plan_of(stage, wildcards), stage))


def files_state(stage):
    """Whether they are still the same; tracked: a file that took the place of another may be old."""
    return or_fail(
        lambda wildcards: text_files.state(
            PIPELINE.files(plan_of(stage, wildcards), stage), PIPELINE.root
        )
    )


def all_frozen(reader):
    """The frozen settings of every stage that runs for `reader`, itself included."""
    return or_fail(lambda wildcards: plan_of(reader, wildcards).frozen(reader))


def extent(stage):
    """How far to go, as tracked `key=value` lines: a dry run prints which value changed."""
    return or_fail(lambda wildcards: extents.lines(plan_of(stage, wildcards).stages[stage].extent))


def options(stage):
    """Untracked settings as JSON.

    Snakemake 9.27 leaves the value of a function that takes `input`, `output`, `threads` or
    `resources` out of its record of params (`Rule._is_deriving_function`): a change of an option
    must not re-run anything. tests/pipeline/test_plan.py holds it to that.
    """
    return or_fail(
        lambda wildcards, input: json.dumps(dict(plan_of(stage, wildcards).stages[stage].options))
    )


def flag(name, item):
    """`name` and the files of `item`, or nothing where there are none (untracked, as above)."""
    return lambda wildcards, input: [name, input[item]] if input[item] else []


def threads_for(stage):
    """Cores that the stage keeps busy."""
    return or_fail(lambda wildcards: plan_of(stage, wildcards).threads(stage))


def cluster_for(stage):
    """What the stage asks of a cluster; nothing on this machine reads it."""

    def resource(name):
        return or_fail(lambda wildcards: plan_of(stage, wildcards).resources(stage)[name])

    return {name: resource(name) for name in cluster.NAMES}


def planned(experiment, value):
    """`value` of an experiment's plan, for a rule that is of this experiment alone."""
    return or_fail(lambda wildcards: value(PIPELINE.plan(experiment, "preflight")))


def ab_for(name):
    """One of the things that a comparison of kernels asks of a cluster."""
    return or_fail(lambda wildcards: plan_of("train", wildcards).ab_resources()[name])


def ab_key(name):
    """A key of the comparison, as text; tracked: another value compares again."""
    return or_fail(lambda wildcards: str(getattr(plan_of("train", wildcards).settings.ab, name)))


@or_fail
def compared(wildcards):
    """`--ab` and what a comparison of kernels has found; no input, so that no report asks for it."""
    return [
        word for path in PIPELINE.compared(plan_of("train", wildcards)) for word in ("--ab", path)
    ]


@or_fail
def compared_state(wildcards):
    """The hash of its content."""
    return [sha256_file(path) for path in PIPELINE.compared(plan_of("train", wildcards))]


def check_for(experiment):
    """What a check of the nodes asks of a cluster: that of the training, for less time."""

    def resource(name):
        return planned(experiment, lambda plan: plan.check_resources()[name])

    return {name: resource(name) for name in cluster.NAMES}


def points_of(sweep):
    """The input of a target: the report of the sweep."""

    def page(wildcards):
        found = PIPELINE.sweep_target(sweep)
        # Known only now: while rules are read, Snakemake has not looked at --groups yet.
        ANNOUNCER.announce_sweep(PIPELINE.sweep(sweep), workflow.group_settings.overwrite_groups)
        return found

    return or_fail(page)


def tell_jobs(sweep):
    """Have jobs that Snakemake starts elsewhere look among the points of `sweep` first.

    They are asked for files by their paths, and get the configuration of the command line: two
    sweeps, or a sweep and the experiment, may want one run with other options.
    """
    settings = workflow.config_settings
    words = [word for word in settings.config_args or () if not word.startswith("sweep=")]
    SWEPT.append(sweep)
    settings.config_args = [*words, f"sweep={','.join(dict.fromkeys(SWEPT))}"]


def made_by_points(stage):
    """What `stage` makes for each point of a sweep."""

    def paths_of(wildcards):
        tell_jobs(wildcards.sweep)
        return PIPELINE.swept(wildcards.sweep, wildcards.digest).made(stage)

    return or_fail(paths_of)
