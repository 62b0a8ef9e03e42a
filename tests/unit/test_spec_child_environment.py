"""The environment of child processes: what another launcher or a shell has left does not change what a child is."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipa.attempt.launcher import Launched, launched
from clipa.errors import ConfigError, InputError
from clipa.spec.child_environment import RENDEZVOUS, child_environment, settings_of, tool_environment, without_slurm
from clipa.spec.load import load_cluster

LEFT = {
    "RANK": "1", "LOCAL_RANK": "3", "WORLD_SIZE": "8", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "x", "OMPI_COMM_WORLD_RANK": "2", "PMI_RANK": "1", "OMP_PLACES": "{0}", "KMP_AFFINITY": "x",
    "OMP_NUM_THREADS": "x", "PYTHONOPTIMIZE": "2", "PYTHONINSPECT": "1", "PYTHONWARNINGS": "error",
    "PYTHONDONTWRITEBYTECODE": "1", "PYTHONSTARTUP": "/x", "CLIPA_STOP_FILE": "/x", "CLIPA_COMING": "/x",
}  # fmt: skip


def test_nothing_that_a_launcher_left_is_inherited():
    kept = {"PATH": "/bin", "HOME": "/h", "NCCL_DEBUG": "INFO", "CUDA_VISIBLE_DEVICES": "1", "CLIPA_DEBUG": "1"}
    assert child_environment(inherited={**LEFT, **kept}) == {**kept, "PYTHONSAFEPATH": "1"}


@given(st.sampled_from(sorted(LEFT)), st.text(st.characters(exclude_characters="\0", codec="ascii")))
def test_a_variable_that_is_set_for_the_child_wins_over_what_the_shell_has(name, value):
    assert child_environment({name: value}, inherited=LEFT)[name] == value


def test_of_pythonpath_the_absolute_folders_stay():
    found = child_environment(inherited={"PYTHONPATH": os.pathsep.join(["", ".", "/a", "b", "/c"])})
    assert found["PYTHONPATH"] == f"/a{os.pathsep}/c"
    assert "PYTHONPATH" not in child_environment(inherited={"PYTHONPATH": f".{os.pathsep}"})


def test_a_tool_in_the_foreground_keeps_the_users_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("RANK", "1")
    found = tool_environment()
    assert (found["OMP_NUM_THREADS"], "RANK" in found) == ("3", False)


def test_a_local_run_is_no_part_of_the_job_whose_shell_submitted_it():
    left = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "3", "SUBMITIT_EXECUTOR": "slurm", "SLURM_CONF": "/c", "PATH": "/bin"}
    assert without_slurm(left) == {"SLURM_CONF": "/c", "PATH": "/bin"}


@pytest.mark.parametrize("name", [*RENDEZVOUS, "TORCHELASTIC_RUN_ID", "CLIPA_STOP_FILE"])
def test_a_profile_cannot_say_which_rank_a_child_is(tmp_path, name):
    profile = tmp_path / "box.toml"
    profile.write_text(f'backend = "local"\n[env]\n{name} = "1"\n')
    with pytest.raises(ConfigError, match=f"env: {name} says which process"):
        load_cluster(profile)
    assert settings_of({name: "1", "A": "b"}) == {"A": "b"}  # of a plan that an older clipa made


@pytest.mark.parametrize(("given", "expected"), [
    ({}, (0, 0, 1)), ({"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}, (3, 1, 4)),
])  # fmt: skip
def test_a_process_knows_its_rank(given, expected):
    assert launched(given) == Launched(*expected)


@pytest.mark.parametrize("given", [
    {"RANK": "1"}, {"RANK": ""}, {"RANK": "x"}, {"RANK": "-1"}, {"WORLD_SIZE": "0"}, {"WORLD_SIZE": ""},
    {"LOCAL_RANK": "1"}, {"RANK": "4", "WORLD_SIZE": "4"}, {"RANK": "\u0661", "WORLD_SIZE": "8"},
])  # fmt: skip
def test_a_rank_that_cannot_be_is_refused(given):
    """By hand: `RANK=1 python -m clipa.train RUN` would train as rank 1 of 1, write nothing and end with code 0."""
    with pytest.raises(InputError):
        launched(given)
