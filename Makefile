# Every target works from nothing: it makes .venv from the lock files when that is missing or old.
#
#   make demo       train llama3_8B_tiny end to end on this machine
#   make test       what CI runs: all tests
#   make check      format, lint, types and the quick tests; under three minutes
#   make test-slurm tests on a real SLURM that is started for them; needs root
#   make campaign   faults by chance on one training for ten minutes; CAMPAIGN="--seed 2 --ranks 4"
#   make audit      ask for known vulnerabilities of the locked packages; fails without a network
#   make fuzz       look for inputs that break a parser, for SECONDS=600
#   make docs       build the site of docs/ into build/site
#   make fix        repair what can be repaired
#   make lock       pin the dependencies again (UPGRADE=1: their newest versions)
#
# PYTHON=…       the interpreter to make .venv with, where several are installed
# TORCH_INDEX=…  an additional package index to find torch in (README, "Installing elsewhere")

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules --no-print-directory

VENV ?= .venv
export VENV PYTHON TORCH_INDEX
# Where it is set, every start of Snakemake compiles half of its imports: .8 s.
export PYTHONDONTWRITEBYTECODE :=
export PATH := $(abspath $(VENV))/bin:$(PATH)

DEMO := llama3_8B_tiny
# Of make fuzz. bash has a variable of this name, which make must not take for it.
SECONDS := 600
QUICK_TESTS := $(wildcard tests/unit tests/config tests/golden tests/contract)
# The longest first, because only a few run at a time.
SLURM_TESTS := $(patsubst %,tests/slurm/test_%.py,job_faults rank_faults driver sweep ab_jobs training jobs preflight tuning)
SLURM_TESTS += $(filter-out $(SLURM_TESTS),$(wildcard tests/slurm/test_*.py))
SMK_FILES := $(wildcard Snakefile rules/*.smk)

.ONESHELL:
.PHONY: demo test test-slurm campaign check lint types imports quick-tests slow-tests audit fuzz docs fix lock runtime dev help
.DEFAULT_GOAL := help

help:
	@sed -n '3,16s/^# \{0,3\}//p' Makefile

runtime:
	@bash requirements/environment.sh runtime

dev:
	@bash requirements/environment.sh dev

demo: runtime
	@started=$$SECONDS
	snakemake --cores all train_$(DEMO)
	python -m primus.config show $(DEMO) --paths
	echo "make demo: $$((SECONDS - started)) s after the installation"

test: check slow-tests test-slurm

# The audit waits for a network most of its time, where there is one.
check: dev
	@said=$$(mktemp)
	python requirements/audit.py --if-possible >"$$said" &
	audit=$$!
	trap 'kill $$audit 2>/dev/null || true; rm -f "$$said"' EXIT
	$(MAKE) lint types imports quick-tests
	status=0; wait $$audit || status=$$?
	cat "$$said"
	exit $$status

lint: dev
	ruff format --check
	ruff check
	snakefmt --check $(SMK_FILES)
	snakemake --lint
	codespell

types: dev
	mypy

imports: dev
	lint-imports

quick-tests: dev
	pytest -n 2 -m "not slow and not pipeline" $(QUICK_TESTS)

slow-tests: dev
	pytest -n 2 --dist loadfile --durations=10 -m "(slow or pipeline) and not gpu and not slurm" tests

# Each file has a cluster of its own; most of a test's time is waiting for SLURM.
test-slurm: dev
	@$(MAKE) -j 5 --output-sync=target $(SLURM_TESTS)

.PHONY: $(SLURM_TESTS)
$(SLURM_TESTS):
	@python tests/slurm/lab.py --if-possible --nodes 4 $(LAB_OPTIONS) -- pytest -m slurm --durations=5 $@

tests/slurm/test_accounting.py: LAB_OPTIONS := --accounting --min-job-age 2

campaign: dev
	@python tests/faults/campaign.py $(CAMPAIGN)

audit: dev
	@python requirements/audit.py

# Also apart: atheris is built for few versions of Python. Corpus: $(VENV)/fuzz/corpus.
fuzz: dev
	@[[ -x $(VENV)/fuzz/bin/python ]] || python -m venv --without-pip $(VENV)/fuzz
	python -m pip --python $(VENV)/fuzz/bin/python install --disable-pip-version-check -qq 'atheris>=3,<4'
	PYTHONPATH="$(CURDIR):$$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
	    $(VENV)/fuzz/bin/python tests/fuzz/harness.py --seconds $(SECONDS) --corpus $(VENV)/fuzz/corpus

# Apart for its dependencies, which nothing else here needs.
docs: runtime
	@[[ -x $(VENV)/docs/bin/python ]] || python -m venv --without-pip $(VENV)/docs
	python -m pip --python $(VENV)/docs/bin/python install --disable-pip-version-check -qq -r docs/requirements.txt
	NO_MKDOCS_2_WARNING=1 $(VENV)/docs/bin/python -m mkdocs build --strict --quiet
	echo "build/site/index.html; with its search: python -m http.server --directory build/site"

fix: dev
	ruff check --fix --exit-zero
	ruff format
	snakefmt $(SMK_FILES)
	codespell --write-changes

lock: dev
	bash requirements/lock.sh $(if $(UPGRADE),--upgrade)
