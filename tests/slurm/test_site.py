"""A first profile from a real site, and what the doctor finds on one of its nodes."""

from __future__ import annotations

import json

from clipa.spec.load import load_cluster
from tests.slurm.field import Field


def test_init_asks_the_site_and_the_doctor_looks_at_a_node(field: Field) -> None:
    field.run("cluster", "init", "mine", "--conf", str(field.slurm.conf))
    profile = field.folder / "mine.toml"
    cluster = load_cluster(profile)
    assert cluster.slurm
    assert (cluster.slurm.partition, cluster.gpus, cluster.slurm.gpu_type) == ("main", 2, "h100")
    assert "already" in field.run("cluster", "init", "mine", "--conf", str(field.slurm.conf), code=2)

    found = {f["what"]: f for f in json.loads(field.run("doctor", "--cluster", "here.toml", "--json"))["findings"]}
    assert not [f for f in found.values() if f["state"] == "bad"], found
    assert "node1 sees the run root" in found
    assert any("no accounting" in what for what in found)
    assert not field.queue("doctor")
    assert not list((field.folder / "runs").glob(".probe-*"))

    out = field.run("doctor", "--cluster", "./mine.toml", code=1)
    assert "the profile wants 2" in out, "its GPUs are made up, and that is found on the node"
    field.profile("odd", table='python = "/no/such/python"')
    assert "/no/such/python" in field.run("doctor", "--cluster", "./odd.toml", code=1)
    assert "not a SLURM profile" in field.run("doctor", "--cluster", "local", code=2)


def test_without_slurm_the_doctor_and_init_say_so(field: Field) -> None:
    field.profile("off", table="")
    text = (field.folder / "off.toml").read_text().replace(str(field.slurm.conf), "/no/slurm.conf")
    (field.folder / "off.toml").write_text(text)
    assert "does not answer" in field.run("doctor", "--cluster", "./off.toml", code=1)
    assert "does not answer" in field.run("cluster", "init", "x", "--conf", "/no/slurm.conf", code=1)
