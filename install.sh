#!/bin/sh
# Make .venv and install clipa into it. Usage: ./install.sh train|test
# PYTHON chooses the interpreter; TORCH=cpu|cuda|keep overrides the choice of torch's build.
set -eu
cd "$(dirname "$0")"
what=${1:-train}
venv=.venv

say() { printf '%s\n' "$*"; }
fail() { say "install: $*" >&2; exit 1; }

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if command -v "$candidate" >/dev/null && new_enough "$candidate"; then
            say "$candidate"
            return
        fi
    done
    fail "no Python >= 3.11 found; set PYTHON=/path/to/python3"
}

make_venv() {
    python=$(find_python)
    rm -rf "$venv"
    say "making $venv with $("$python" --version)"
    if "$python" -m venv "$venv" >/dev/null 2>&1; then return; fi
    rm -rf "$venv"
    if command -v uv >/dev/null && uv venv --quiet --seed --python "$python" "$venv"; then return; fi
    if "$python" -m virtualenv --quiet "$venv" 2>/dev/null; then return; fi
    if "$python" -m venv --without-pip "$venv" 2>/dev/null &&
        "$python" -m pip --python "$venv/bin/python" install --quiet pip 2>/dev/null; then return; fi
    rm -rf "$venv"
    fail "cannot make a virtual environment; install it with: apt-get install python3-venv"
}

pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }

has_gpu() {
    nvidia-smi -L 2>/dev/null | grep -q '^GPU ' && return
    ls /proc/driver/nvidia/gpus/* >/dev/null 2>&1
}

torch_build() {
    if [ -n "${TORCH:-}" ]; then
        say "$TORCH"
    elif "$venv/bin/python" -c 'import torch' 2>/dev/null; then
        say keep
    elif has_gpu; then
        say cuda
    elif [ "$(uname -s)-$(uname -m)" = Linux-x86_64 ]; then
        say cpu
    else
        say default # PyPI's wheel is a CPU build there
    fi
}

install_cpu_torch() {
    version=$(sed -n 's/^torch==//p' constraints-cpu.txt)
    vision=$(sed -n 's/^torchvision==//p' constraints-cpu.txt)
    if pip install --no-deps "torch==$version+cpu" 2>/dev/null; then
        say "torch $version, CPU build, from the configured index"
    elif pip install --retries 0 --timeout 10 --index-url https://download.pytorch.org/whl/cpu \
        "torch==$version" "torchvision==$vision" 2>/dev/null; then
        say "torch $version, CPU build, from PyTorch's CPU index"
    else
        say "no CPU build of torch can be had here: the default build follows, with its CUDA packages"
        return 1
    fi
}

[ -x "$venv/bin/python" ] && "$venv/bin/python" -m pip --version >/dev/null 2>&1 || make_venv
build=$(torch_build)
say "installing clipa[$what] with torch: $build (about a minute from nothing)"
constraints=$venv/constraints.txt
: >"$constraints"
case $build in
    cpu) if install_cpu_torch; then cp constraints-cpu.txt "$constraints"; fi ;;
    keep) pip list --format=freeze | grep -E '^(torch|torchvision)==' | sed 's/+.*//' >"$constraints" || : ;;
esac
pip install --constraint "$constraints" --editable ".[$what]"
