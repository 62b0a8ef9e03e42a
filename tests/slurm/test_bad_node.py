"""A node whose GPUs are not fit: found before anything is started on it, kept off, and the job goes on elsewhere."""

from __future__ import annotations

import sys

import pytest

from clipa.registry import events
from tests.slurm.field import Field, until

SMI = """#!/bin/bash
case "$*" in
  -L) echo "GPU 0: Made-up (UUID: GPU-00000000-0000)" ;;
  *ecc*) [ "$SLURMD_NODENAME" = node1 ] && echo "GPU-00000000-0000, 3" || echo "GPU-00000000-0000, 0" ;;
esac
"""


def test_a_node_with_broken_memory_is_left_for_another(field: Field) -> None:
    tools = field.folder / "tools"
    tools.mkdir()
    (tools / "nvidia-smi").write_text(SMI)
    (tools / "nvidia-smi").chmod(0o755)
    field.profile(table=f'gpu_type = "h100"\nsetup = ["export PATH={tools}:$PATH"]', gpus=1)
    (run,) = field.submit("pretrain")
    bad = field.last(run, events.BadNode)
    assert (bad.name, bad.why) == ("node1", "3 uncorrectable ECC errors: GPU-00000000-0000")  # type: ignore[union-attr]
    until(lambda: field.status(run)["state"] == "FAILED", "it has run on the other node", 120)
    nodes = [event.nodes for event in field.said(run, events.Started)]  # type: ignore[union-attr]
    assert nodes == [("node2",)], "nothing was started on the broken one"
    assert "torch sees none" in str(field.status(run)["why"]), "the GPUs are made up"


def _python(field: Field, cases: str) -> str:
    """An interpreter for the nodes that does something of its own first. Returns the line of the profile."""
    path = field.folder / "python"
    path.write_text(
        f'#!/bin/bash\nreal={sys.executable}\ncase "$SLURMD_NODENAME $*" in\n{cases}\nesac\nexec $real "$@"\n'
    )
    path.chmod(0o755)
    return f'python = "{path}"'


@pytest.mark.long
def test_a_node_that_cannot_reduce_is_named(field: Field) -> None:
    """The network interface of one of two nodes is not there at first: found before anything is trained. There is no
    third node: SLURM refuses a job that keeps off this one, and so the job comes back to it.
    """
    mark = field.folder / "mended"
    once = f"  node2*launch*|node2*submitit*) [ -e {mark} ] || export GLOO_SOCKET_IFNAME=nosuch0; touch {mark} ;;"
    field.profile(nodes=2, table=_python(field, once))
    (run,) = field.submit("pretrain", "--set", "phases.pretrain.samples=640")
    bad = field.last(run, events.BadNode)
    assert bad.name == "node2"  # type: ignore[union-attr]
    assert "all-reduce" in bad.why  # type: ignore[union-attr]
    assert not field.said(run, events.Spawned), "nothing is trained yet"
    field.run("wait", run)
    assert field.dir(run).claimed() == [1, 2]
    assert [event.attempt for event in field.said(run, events.Spawned)] == [2]
    (field.folder / "runs" / ".nodes" / "node2.json").unlink()


@pytest.mark.long
def test_a_taken_port_costs_no_attempt(field: Field) -> None:
    """Between the batch script's look and the ranks' start somebody else takes the port at which they would meet."""
    taken = "import socket, sys, time; s = socket.socket(); s.bind(('', int(sys.argv[1]))); s.listen(); time.sleep(90)"
    (field.folder / "take.py").write_text(taken)
    cases = f"""  *host.meeting*)
    place=$($real "$@"); echo "$place"
    $real {field.folder}/take.py "${{place##*:}}" >/dev/null 2>&1 </dev/null &
    sleep 1; echo "$place" >{field.folder}/place; exit 0 ;;"""
    field.profile(nodes=2, table=_python(field, cases))
    (run,) = field.submit("pretrain", "--set", "phases.pretrain.samples=640")
    field.run("wait", run)
    assert field.dir(run).claimed() == [1]
    (meeting,) = field.said(run, events.Meeting)
    assert str(meeting.port) != (field.folder / "place").read_text().strip().rpartition(":")[2]  # type: ignore[union-attr]
