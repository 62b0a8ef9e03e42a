#!/bin/sh
# Make .venv and install clipa into it, editable. Usage: ./install.sh train|test
#
#   PYTHON=/path/to/python3   which Python (else the first of python3, python3.13, 3.12, 3.11 that is >= 3.11)
#   TORCH=cpu|cuda|keep       which build of torch (else: an installed one stays; CUDA where an NVIDIA GPU is; CPU)
#
# Does nothing when .venv is whole and was installed from these very files.
set -eu
cd "$(dirname "$0")"

extra=${1:-train}
venv=.venv
python=$venv/bin/python
busy=$venv/.installing # there from the first file to the last: a .venv that has it was interrupted
constraints="constraints-cpu.txt"
torch_index=https://download.pytorch.org/whl/cpu
export PIP_USER=0 # some clusters set it to 1, and then pip refuses to install into a virtual environment

say() { printf '%s\n' "$*"; }
fail() {
    printf 'install: %s\n' "$*" >&2
    exit 1
}

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        new_enough "$PYTHON" || fail "PYTHON=$PYTHON is not a Python >= 3.11"
        say "$PYTHON"
        return
    fi
    for candidate in python3 python3.13 python3.12 python3.11; do
        if new_enough "$candidate"; then
            say "$candidate"
            return
        fi
    done
    fail "no Python >= 3.11 found. Debian, Ubuntu: sudo apt-get install python3.11-venv. Elsewhere: PYTHON=/path/to/python3"
}

# Debian keeps ensurepip in a package of its own: without it, whatever else can make an environment with pip in it.
with_ensurepip() { "$base" -m venv "$venv"; }
with_uv() { uv venv --allow-existing --seed --python "$base" "$venv"; }
with_virtualenv() { "$base" -m virtualenv "$venv"; }
with_system_pip() { "$base" -m venv --without-pip "$venv" && "$base" -m pip --python "$python" install pip; }

has_pip() { "$python" -m pip --version >/dev/null 2>&1; }

make_venv() {
    base=$(find_python)
    say "making $venv with $("$base" --version) (a few seconds)"
    for way in with_ensurepip with_uv with_virtualenv with_system_pip; do
        rm -rf "$venv"
        mkdir "$venv"
        : >"$busy"
        if "$way" >/dev/null 2>&1 && has_pip; then
            pwd -P >"$venv/.made-in"
            return
        fi
    done
    rm -rf "$venv"
    version=$("$base" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    fail "$base cannot make a virtual environment. Debian, Ubuntu: sudo apt-get install python$version-venv"
}

identity() { "$1" -c 'import sys; print(sys.base_prefix, sys.version)' 2>/dev/null; }
is_other_python() { [ -n "${PYTHON:-}" ] && [ "$(identity "$PYTHON")" != "$(identity "$python")" ]; }
is_moved() { [ -f "$venv/.made-in" ] && [ "$(cat "$venv/.made-in")" != "$(pwd -P)" ]; }

settle_venv() {
    if [ ! -e "$venv" ]; then
        make_venv
    elif [ -e "$busy" ]; then
        say "$venv is half made (an installation was interrupted): starting over"
        make_venv
    elif ! has_pip || ! new_enough "$python" || is_moved || is_other_python; then
        say "$venv is broken, has moved, or is of another Python: starting over"
        make_venv
    fi
}

# "VERSION cpu" or "VERSION cuda" of the torch in .venv; nothing when there is none or it is too old.
torch_here() {
    "$python" - <<'EOF'
import re, runpy, sys
from importlib import metadata
from pathlib import Path

least = re.search(r'"torch>=(\d+)\.(\d+)"', Path("pyproject.toml").read_text()).groups()
try:
    torch = metadata.distribution("torch")
except metadata.PackageNotFoundError:
    sys.exit()
if tuple(map(int, torch.version.split(".")[:2])) >= tuple(map(int, least)):
    facts = runpy.run_path(str(torch.locate_file("torch/version.py")))
    print(torch.version.partition("+")[0], "cuda" if facts["cuda"] else "cpu")
EOF
}

has_gpu() {
    nvidia-smi -L 2>/dev/null | grep -q '^GPU ' && return
    [ -n "$(ls /proc/driver/nvidia/gpus 2>/dev/null)" ]
}

# Sets `torch` to keep, cpu, cuda or default (where PyPI's wheel is a CPU build anyway), and `here` to what is there.
choose_torch() {
    here=$(torch_here)
    case ${TORCH:-} in
        "") ;;
        keep) [ -n "$here" ] || fail "TORCH=keep, but $venv has no torch that is new enough" ;;
        cpu | cuda)
            if [ -n "$here" ] && [ "${here#* }" != "$TORCH" ]; then
                say "$venv has the ${here#* } build of torch, and TORCH=$TORCH: starting over"
                make_venv
                here=""
            fi
            ;;
        *) fail "TORCH=$TORCH is none of cpu, cuda, keep" ;;
    esac
    if [ -n "$here" ]; then
        torch=keep
    elif [ -n "${TORCH:-}" ]; then
        torch=$TORCH
    elif [ "$(uname -s) $(uname -m)" != "Linux x86_64" ]; then
        torch=default
    elif has_gpu; then
        torch=cuda
    else
        torch=cpu
    fi
}

# --no-compile: Python compiles what it imports. That takes 3 s once; compiling every file took 25 s of 54.
pip_install() { "$python" -m pip --disable-pip-version-check install --quiet --no-compile "$@"; }
pinned() { sed -n "s/^$1==//p" "$constraints"; }

# No retries and a short wait: a machine that cannot reach the index loses no time.
from_torch_index() { pip_install --no-deps --retries 0 --timeout 10 --index-url "$torch_index" "$@" >/dev/null 2>&1; }

# The CPU build from the index that pip is set up with, else from PyTorch's own, for torch and torchvision alone.
find_cpu_torch() {
    wheel="torch==$(pinned torch)+cpu"
    if pip_install --dry-run --no-deps "$wheel" >/dev/null 2>&1; then
        say "torch $(pinned torch): the CPU build of the configured index"
    elif from_torch_index "$wheel"; then
        say "torch $(pinned torch): the CPU build of $torch_index"
        # Where this one cannot be had, PyPI's does too: clipa/model/torchvision_guard.py.
        from_torch_index "torchvision==$(pinned torchvision)+cpu" || :
    else
        return 1
    fi
}

install_clipa() {
    : >"$busy"
    set -- --editable ".[$extra]"
    case $torch in
        keep)
            say "torch ${here% *} is there, and stays"
            printf 'torch==%s\n' "${here% *}" >"$venv/constraints.txt"
            set -- "$@" --constraint "$venv/constraints.txt"
            ;;
        cpu)
            if find_cpu_torch; then
                set -- "$@" --constraint "$constraints" "$wheel"
            else
                torch=default
                say "torch: no CPU build can be had here; the default build comes, with gigabytes of CUDA packages"
            fi
            ;;
        cuda) say "torch: the CUDA build (several GB: minutes, the first time)" ;;
    esac
    say "installing clipa[$extra] (about a minute the first time)"
    if ! pip_install "$@"; then
        rm -f "$busy" # pip has put things back
        fail "pip could not install clipa[$extra]; its reason stands above"
    fi
    for package in "$venv"/lib/python3*/site-packages/nvidia_*; do
        if [ "$torch" = cpu ] && [ -e "$package" ]; then
            fail "CUDA packages came in although the CPU build was wanted: ${package##*/}"
        fi
    done
    rm -f "$busy"
}

# What the environment was installed from, by content: `git checkout` changes the times of files.
sources() { { say "$1 ${TORCH:-}" && cat pyproject.toml "$constraints" install.sh; } | cksum; }

is_current() {
    [ "$(cat "$venv/.installed-$1" 2>/dev/null)" = "$(sources "$1")" ] && [ ! -e "$busy" ] &&
        "$python" -c '' 2>/dev/null && ! is_moved && ! is_other_python
}

case $extra in
    train) extras=train ;;
    test) extras="train test" ;; # [test] contains [train]
    *) fail "usage: ./install.sh train|test" ;;
esac
if is_current "$extra"; then exit; fi
began=$(date +%s)
settle_venv
choose_torch
install_clipa
for each in $extras; do sources "$each" >"$venv/.installed-$each"; done
say "installed in $(($(date +%s) - began)) s"
