# Whether the nodes are fit to train an experiment, as a job of its own; nothing depends on it.
# Without an output Snakemake runs a rule whenever it is asked for: who asks wants to know how the
# nodes are now. What was measured stands in output/preflight, undeclared, also when nodes are broken.


for name in EXPERIMENTS:

    rule:
        name:
            f"preflight_{name}"
        input:
            settings=planned(name, lambda plan: paths.settings_file(plan.stages["train"])),
        log:
            f"output/logs/preflight/{name}.log",
        threads: planned(name, lambda plan: plan.threads("train"))
        resources:
            **check_for(name),
        params:
            options=planned(name, lambda plan: json.dumps(dict(plan.stages["train"].options))),
            output=planned(name, lambda plan: paths.preflight(plan.stages["train"])),
            run=planned(name, lambda plan: os.path.dirname(paths.artifact(plan.stages["train"]))),
        shell:
            "python -u -m primus.preflight --settings {input.settings:q} "
            "--options {params.options:q} --run {params.run:q} --output {params.output:q} "
            "2>&1 | tee -i {log:q}"

    describe(f"preflight_{name}", f"{MEANING['preflight']} {name}")
