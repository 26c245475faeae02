# Which GEMMs a training step runs, and a faster kernel for each where there is one.
# Outputs: one line per problem; the store of every problem ever tuned is not declared.


rule shapes:
    input:
        settings=frozen("shapes", "shapes"),
    output:
        paths.ARTIFACT["shapes"],
    log:
        paths.log_pattern("shapes"),
    threads: threads_for("shapes")
    resources:
        **cluster_for("shapes"),
    params:
        options=options("shapes"),
    shell:
        "python -u -m primus.shapes --settings {input.settings:q} "
        "--options {params.options:q} --output {output:q} 2>&1 | tee -i {log:q}"


# Takes all cores of the ranks: nothing else may run beside a measurement.
rule tune:
    input:
        settings=frozen("tune", "tune"),
        shapes=made_by("shapes", "tune"),
    output:
        paths.ARTIFACT["tune"],
    log:
        paths.log_pattern("tune"),
    threads: threads_for("tune")
    resources:
        **cluster_for("tune"),
    params:
        options=options("tune"),
    shell:
        "python -u -m primus.tune --settings {input.settings:q} "
        "--options {params.options:q} --shapes {input.shapes:q} "
        "--output {output:q} 2>&1 | tee -i {log:q}"
