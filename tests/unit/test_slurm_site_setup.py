"""A profile's setup lines in real bash: shell functions of the site are there, a line that fails is reported."""

from __future__ import annotations

import subprocess

import pytest

from clipa.slurm.site_setup import setup_lines

MODULE = (
    'module() { [ "$2" = cuda ] && export CUDA_HOME=/cuda || { echo "Lmod: unknown module $2" >&2; return 1; }; }\n'
)


def _bash(tmp_path, lines, **environment):
    """Run setup lines as a batch script; what they leave, what the tail is told, and the exit code."""
    tail = tmp_path / "tail"
    tail.write_text(f'#!/bin/bash\nprintf "%s|" "$1" "$2" "$4" >{tmp_path}/told; cat "$6" >>{tmp_path}/told; exit 10\n')
    tail.chmod(0o755)
    script = tmp_path / "batch.sh"
    script.write_text("\n".join(["#!/bin/bash", *setup_lines(lines, str(tail)), 'echo "trained $CUDA_HOME $X"', ""]))
    env = {"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path), **environment}
    done = subprocess.run(["bash", script], env=env, capture_output=True, text=True)
    told = tmp_path / "told"
    return done, told.read_text() if told.exists() else ""


@pytest.mark.parametrize("variable", ["MODULESHOME", "LMOD_PKG"])
def test_the_sites_module_command_is_there(tmp_path, variable):
    (tmp_path / "init").mkdir()
    (tmp_path / "init" / "bash").write_text(MODULE)
    done, told = _bash(tmp_path, ["module load cuda", "export X=1"], **{variable: str(tmp_path)})
    assert (done.stdout, done.returncode, told) == ("trained /cuda 1\n", 0, ""), done.stderr


def test_a_module_that_is_unknown_stops_the_attempt_with_its_words(tmp_path):
    (tmp_path / "init").mkdir()
    (tmp_path / "init" / "bash").write_text(MODULE)
    done, told = _bash(tmp_path, ["module load cuda", "module load cudnn"], MODULESHOME=str(tmp_path))
    assert (done.returncode, done.stdout) == (10, "")
    assert told == "setup|1|module load cudnn|Lmod: unknown module cudnn\n"
    assert "unknown module" in done.stderr, "the job's log has it too"


@pytest.mark.parametrize(("lines", "told"), [
    (["nosuchcommand --x"], "setup|127|nosuchcommand --x|"),
    (["source /nosuch/activate"], "setup|1|source /nosuch/activate|"),
    (["echo why >&2; exit 3"], "setup|3||why\n"),
    (["set -e", "grep -q x /dev/null", "echo on"], "setup|1|grep -q x /dev/null|"),
    (["if true; then", "  false", "fi"], "setup|1|  false|"),
    (["echo 'ModuleCmd_Load.c(213):ERROR:105: Unable to locate' >&2"], "setup|1|module|ModuleCmd_Load"),
])  # fmt: skip
def test_a_line_that_fails_is_reported(tmp_path, lines, told):
    done, found = _bash(tmp_path, lines)
    assert (done.returncode, done.stdout) == (10, "")
    assert found.startswith(told)


@pytest.mark.parametrize("lines", [
    ["[ -e /nosuch ] && export Y=1", "export X=1"], ["false || true", "export X=1"], ["export X=1 # it's fine"],
    ["if [ -e /nosuch ]; then", "  module load cuda", "fi", "export X=1"], ["for n in 1; do export X=$n; done"],
    ["source {folder}/activate"], ["f() { false; export X=1; }; f"],
])  # fmt: skip
def test_what_is_no_failure_goes_on(tmp_path, lines):
    """Commands inside a file that is sourced, or a function, may fail: `activate` scripts have such."""
    (tmp_path / "activate").write_text("false\nexport X=1\n")
    done, told = _bash(tmp_path, [line.replace("{folder}", str(tmp_path)) for line in lines])
    assert (done.stdout, done.returncode, told) == ("trained  1\n", 0, ""), done.stderr


def test_without_setup_lines_nothing_of_the_profile_is_read():
    assert setup_lines([], "tail") == []
