#!/usr/bin/env bash
# Make the virtual environment agree with the lock files: environment.sh runtime|dev
#
# Does nothing when it already does: a stamp in the environment holds the hash of what was
# installed. Variables: VENV (default .venv), PYTHON (an interpreter), TORCH_INDEX (an additional
# package index to find torch in).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

set_name="${1:?usage: environment.sh runtime|dev}"
venv="${VENV:-.venv}"
torch="$(sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml)"
locks=(-r requirements/lock.txt)
sources=(pyproject.toml requirements/environment.sh requirements/lock.txt)
if [[ $set_name == dev ]]; then
    locks+=(-r requirements/lock-dev.txt)
    sources+=(requirements/lock-dev.txt)
fi

say() { printf 'environment: %s\n' "$*" >&2; }

fits() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
        if fits "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    say "no Python from 3.11 to 3.13 among: ${PYTHON:-python3.11 python3.12 python3.13 python3}." \
        "Install one, or name it: make PYTHON=/path/to/python3.11"
    return 1
}

install() {
    "$venv/bin/python" -m pip install --disable-pip-version-check -qq --no-compile "$@" || {
        say "pip could not install: $*"
        say "it needs a package index; without a network set PIP_NO_INDEX=1 and" \
            "PIP_FIND_LINKS=DIRECTORY, a directory with the wheels of requirements/lock*.txt"
        return 1
    }
}

stamp="$venv/.locked-$set_name"
wanted="$(sha256sum "${sources[@]}" | sha256sum | cut -d' ' -f1)"
if [[ -x $venv/bin/python && -f $stamp && $(<"$stamp") == "$wanted" ]]; then
    exit 0
fi

if ! fits "$venv/bin/python"; then
    if [[ -e $venv ]]; then
        say "$venv is there, but its Python does not run or is not 3.11 to 3.13. Remove it first."
        exit 1
    fi
    python="$(find_python)"
    say "making $venv with $("$python" --version); the first time takes a few minutes"
    "$python" -m venv "$venv" || {
        rm -rf "$venv"
        say "$python -m venv failed; on Debian: apt install python3-venv"
        exit 1
    }
fi

started=$SECONDS
say "installing $torch and the locked packages ($set_name)"
install --no-deps ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} "$torch"
install --no-deps --require-hashes "${locks[@]}"
# What a GPU build of torch needs beyond the lock; nothing for a CPU build.
install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} "$torch"
install --no-deps --no-build-isolation --editable .
# Every process of the pipeline imports these: without bytecode the first ones would each compile
# them, several at a time. The rest is compiled when it is imported, if ever.
packages="$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
"$venv/bin/python" -m compileall -q -j 0 \
    "$packages"/{torch,megatron,numpy,sympy,networkx,snakemake,pydantic,matplotlib,tensorboard} \
    >/dev/null || true
"$venv/bin/python" -m pip check --disable-pip-version-check >&2 ||
    say "the packages above do not fit together; what was installed beside the lock is to blame"
printf '%s\n' "$wanted" >"$stamp"
say "ready in $((SECONDS - started)) s"
