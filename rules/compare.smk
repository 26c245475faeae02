# Runs side by side: snakemake compare --config runs=a,b
# Of the runs only run.json is declared: it is written once, and no rule makes it. A run's train.json
# would lead to the rule that trains it, and to its experiment, which may have another key by now.


rule:
    """compare runs: --config runs=a,b"""
    name:
        "compare"
    input:
        or_fail(lambda wildcards: f"output/compare/{COMPARISON.name}.html"),


rule comparison:
    input:
        runs=or_fail(runs_compared),
    output:
        html="output/compare/{comparison}.html",
        json="output/compare/{comparison}.json",
    log:
        "output/logs/compare/{comparison}.log",
    localrule: True
    params:
        runs=or_fail(lambda wildcards: COMPARISON.directories(wildcards.comparison)),
        # Tracked: a run that went on, or was made again, is compared again.
        state=or_fail(lambda wildcards: COMPARISON.state(wildcards.comparison)),
    shell:
        "python -u -m primus.compare --output {output.html:q} -- {params.runs:q} "
        "2>&1 | tee -i {log:q}"
