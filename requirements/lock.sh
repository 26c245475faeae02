#!/usr/bin/env bash
# Pin what pyproject.toml and dev.in ask for, and all that this needs: lock.sh [--upgrade]
#
# torch is left out: environment.sh installs it apart, by its exact version, because which build of
# it is right depends on the machine. Run this where pip finds a CPU build of torch (TORCH_INDEX, or
# PIP_FIND_LINKS=DIRECTORY): the GPU build would bring its own libraries into the lock.
#
# With an index that has no JSON interface pip-compile downloads every file to hash it; that takes
# minutes. Hashes of unchanged pins are taken from the present lock.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# A mirror in pip's configuration must not decide what is pinned, nor its hashes.
export PIP_CONFIG_FILE=/dev/null PIP_EXTRA_INDEX_URL="${TORCH_INDEX:-}"

compile() {
    local lock="$1"
    shift
    pip-compile --quiet --no-config --generate-hashes --strip-extras --no-header \
        --no-emit-index-url --no-emit-find-links --no-emit-options --annotation-style line \
        --unsafe-package torch --unsafe-package pip --output-file "$lock" "$@"
    sed -i -e '/^# The following packages are considered/,$d' -e '/^# WARNING/,$d' "$lock"
    if grep -nE '^(nvidia-|cuda-|triton|torch==)' "$lock"; then
        echo "lock: $lock holds libraries of a GPU build of torch; see the head of this script" >&2
        return 1
    fi
}

compile requirements/lock.txt "$@" pyproject.toml
compile requirements/lock-dev.txt "$@" --constraint requirements/lock.txt requirements/dev.in
