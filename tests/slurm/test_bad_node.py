"""A node whose GPUs are not fit: found before anything is started on it, kept off, and the job goes on elsewhere."""

from __future__ import annotations

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
    assert (bad.name, bad.why) == ("node1", "3 uncorrectable ECC error(s): GPU-00000000-0000")  # type: ignore[union-attr]
    until(lambda: field.status(run)["state"] == "FAILED", "it has run on the other node", 120)
    nodes = [event.nodes for event in field.said(run, events.Started)]  # type: ignore[union-attr]
    assert nodes == [("node2",)], "nothing was started on the broken one"
    assert "torch sees none" in str(field.status(run)["why"]), "the GPUs are made up"
