# The Hugging Face model from which a run starts; only experiments with load_hf have it.
# Inputs: the files of a local directory; a model of the hub is downloaded beside the manifest.
# Outputs: a manifest that vouches for each file.


rule weights:
    input:
        settings=frozen("weights", "weights"),
        model=files_for("weights"),
    output:
        paths.ARTIFACT["weights"],
    log:
        paths.log_pattern("weights"),
    resources:
        **cluster_for("weights"),
    params:
        options=options("weights"),
        files=files_state("weights"),
    shell:
        "python -u -m primus.weights --settings {input.settings:q} "
        "--options {params.options:q} --output {output:q} 2>&1 | tee -i {log:q}"
