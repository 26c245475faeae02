#!/usr/bin/env bash
# Pin pyproject.toml's dependencies, and all that these need: lock.sh [--upgrade]
#
# torch is left out: environment.sh installs it apart, by its exact version, because which build of
# it is right depends on the machine. Run this where a CPU build of torch can be found (TORCH_INDEX
# or PIP_FIND_LINKS): the GPU build would bring its own libraries into the lock.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# A private mirror in pip's configuration must not decide what is pinned, nor its hashes.
export PIP_CONFIG_FILE=/dev/null PIP_EXTRA_INDEX_URL="${TORCH_INDEX:-}"

compile() {
    pip-compile --quiet --no-config --generate-hashes --strip-extras --no-header \
        --no-emit-index-url --no-emit-find-links --no-emit-options --annotation-style line \
        --unsafe-package torch "$@" pyproject.toml
    local lock="${*: -1}"
    sed -i -e '/^# The following packages are considered/,$d' -e '/^# WARNING/,$d' "$lock"
    if grep -nE '^(nvidia-|cuda-|triton|torch==)' "$lock"; then
        echo "lock: $lock holds libraries of a GPU build of torch; see the head of this script" >&2
        return 1
    fi
}

compile "${@}" --output-file requirements/lock.txt
compile "${@}" --extra dev --constraint requirements/lock.txt --output-file requirements/lock-dev.txt
