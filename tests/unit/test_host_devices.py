"""GPU names: an index, a UUID, its beginning, a MIG instance; what is named and not there is refused."""

from __future__ import annotations

import fcntl
import os

import pytest

from clipa.errors import ConfigError
from clipa.host import bad_nodes, devices
from clipa.host.devices import Gpu, parse, select
from clipa.host.place import place_of
from clipa.spec.cluster import Cluster
from clipa.spec.hardware import gpu_named
from tests.unit.test_slurm_sbatch import Slurm, World, batch

A, B = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "GPU-89aa0000-d72c-4106-c12f-20bd9faed9f6"
M1, M2 = "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f", "MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb"
LISTED = f"""\
GPU 0: NVIDIA A100-SXM4-80GB (UUID: {A})
GPU 1: NVIDIA A100-SXM4-80GB (UUID: {B})
"""
DIVIDED = f"""\
GPU 0: NVIDIA A100-SXM4-80GB (UUID: {A})
  MIG 1g.10gb     Device  0: (UUID: {M1})
  MIG 3g.40gb     Device  1: (UUID: {M2})
GPU 1: NVIDIA A100-SXM4-80GB (UUID: {B})
"""
OLDER = f"""\
GPU 0: A100-SXM4-40GB (UUID: {A})
  MIG 3g.20gb Device 0: (UUID: MIG-{A}/1/0)
  MIG 3g.20gb Device 1: (UUID: MIG-{A}/2/0)
"""


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """A made-up nvidia-smi; returns what sets its words."""
    tool = tmp_path / "tools" / "nvidia-smi"
    tool.parent.mkdir()
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")

    def says(listed, more=""):
        tool.write_text(f"#!/bin/sh\ncase \"$*\" in\n-L) cat <<'X'\n{listed}X\n;;\n{more}\nesac\n")
        tool.chmod(0o755)

    return says


@pytest.mark.parametrize(("listed", "visible", "uuids"), [
    (LISTED, "0,1", [A, B]), (LISTED, "1,0", [B, A]), (LISTED, " 1 ", [B]), (LISTED, A, [A]), (LISTED, A.upper(), [A]),
    (LISTED, "GPU-8932f937", [A]), (LISTED, "GPU-89aa", [B]), (LISTED, "0,0", [A]), (LISTED, "0,-1,1", [A]),
    (LISTED, "", []), (LISTED, "-1", []), (LISTED, "NoDevFiles", []), (LISTED, "all", [A, B]), ("", "", []),
    (DIVIDED, M2, [M2]), (DIVIDED, "MIG-cba6", [M2]), (DIVIDED, f"{M1},{M2}", [M1, M2]), (DIVIDED, "0", [M1]),
    (DIVIDED, "1", [B]), (DIVIDED, A, [M1]), (DIVIDED, "GPU-8932f937", [M1]),
    (DIVIDED, f"MIG-{A}/3/0", [f"MIG-{A}/3/0"]),
    (OLDER, f"MIG-{A}/2/0", [f"MIG-{A}/2/0"]), (OLDER, "all", [f"MIG-{A}/1/0", f"MIG-{A}/2/0"]),
])  # fmt: skip
def test_every_legal_name_is_understood(listed, visible, uuids):
    found = select(parse(listed), visible)
    assert ([gpu.uuid for gpu in found.gpus], found.missing) == (uuids, ())


@pytest.mark.parametrize("visible", [
    "2", "0,7", "GPU-89", "GPU-", "MIG-", "GPU-ffff", M1, f"MIG-{A[:-1]}0/1/0", "cuda:0", "0x0", "\u0661", "1;0",
])  # fmt: skip
def test_what_is_named_and_not_there_is_refused(smi, monkeypatch, visible):
    """`GPU-89` fits two GPUs: CUDA takes only a beginning that is one GPU's alone."""
    smi(LISTED)
    with pytest.raises(ConfigError, match="no GPU is"):
        devices.gpus(visible)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(ConfigError, match="no GPU is"):
        place_of(Cluster(name="local"))


def test_without_nvidia_smi_a_named_gpu_is_not_the_cpu(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="nvidia-smi lists none"):
        devices.gpus("0")
    assert devices.gpus(None) == devices.gpus("") == devices.gpus("-1") == []


def test_an_instance_has_neither_the_memory_nor_the_peak_of_its_gpu():
    first, second, whole = parse(DIVIDED)
    assert (first.name, first.whole) == ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", A)
    assert (gpu_named(first.name), whole.whole) == (None, "")
    assert gpu_named(whole.name) is not None
    assert devices.usable([first, second]) == devices.usable([first]) == 1
    assert devices.usable(parse(LISTED)) == 2


@pytest.mark.parametrize(("listed", "visible", "errors", "why"), [
    (DIVIDED, M2, 0, ""),
    (DIVIDED, M2, 2, "2 uncorrectable ECC errors"),
    (DIVIDED, f"MIG-{A}/3/0", 0, ""),
    (LISTED, M1, 0, ""),  # the driver lists no instances at all: nothing is known against the node
    (DIVIDED, "MIG-00000000", 0, "0 of 1 GPUs answer"),
    (LISTED, "5", 0, "0 of 1 GPUs answer"),
])  # fmt: skip
def test_a_node_whose_prolog_names_an_instance_is_checked_by_its_gpu(smi, monkeypatch, listed, visible, errors, why):
    smi(listed, f"*ecc*) echo '{A}, {errors}' ;; *compute-apps*) echo 'x, 7' ;;")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(bad_nodes, "FREE_BYTES", 0)
    plan = batch(Slurm(time="1:00:00"), World(processes=1, gpus=1)).plan
    found = bad_nodes.trouble(plan)
    assert found.startswith(why) if why else found == ""


def test_a_lease_that_fails_gives_back_what_it_has(tmp_path):
    pair = [Gpu(0, "x", f"MIG-{A}/1/0"), Gpu(1, "x", B)]
    (tmp_path / ".leases" / f"{B}.lock").mkdir(parents=True)
    with pytest.raises(OSError):
        devices.try_lease(tmp_path, pair, 2, "run r")
    with open(tmp_path / ".leases" / f"MIG-{A}_1_0.lock", "r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert lock.read() == ""
