"""What a site says of itself, and the first profile that comes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipa.errors import InputError
from clipa.slurm import site
from clipa.spec.load import load_cluster

# One line for each kind of node. GRES as in sinfo(1): with type, with sockets, with others beside, none.
SINFO = """\
cpu*|up|2-00:00:00|100|128|515000|(null)
gpu|up|1-00:00:00|10|96|1031000|gpu:h100:8(S:0-1)
gpu|up|1-00:00:00|4|64|515000+|gpu:a100:4(S:0,1),nvme:1
old|drain|infinite|2|16|64000|gpu:2
broken line
"""
CONFIG = """\
Configuration data as of 2026-11-25T14:00:00
AccountingStorageType   = accounting_storage/slurmdbd
ClusterName             = big
JobRequeue              = 1
PreemptParameters       = send_user_signal,youngest_first
SLURM_VERSION           = 23.11.4
SlurmctldParameters     = (null)
"""
OLD = """\
AccountingStorageType   = accounting_storage/none
JobRequeue              = 0
SlurmctldParameters     = preempt_send_user_signal
SLURM_VERSION           = 20.11.9
"""


def test_partitions_as_sinfo_lists_them() -> None:
    found = {p.name: p for p in site.parse_sinfo(SINFO)}
    assert [*found] == ["cpu", "gpu", "old"]
    assert found["cpu"].default
    assert (found["gpu"].gpu_type, found["gpu"].gpus, found["gpu"].nodes, found["gpu"].minutes) == ("h100", 8, 14, 1440)
    assert (found["old"].gpu_type, found["old"].gpus, found["old"].minutes, found["old"].up) == ("", 2, 0, False)


def test_the_rules_of_a_site() -> None:
    new, old = (site.Site((), site.parse_config(text)) for text in (CONFIG, OLD))
    assert (new.warns, new.requeues, new.accounts) == (True, True, True)
    assert (old.warns, old.requeues, old.accounts) == (True, False, False)
    assert not site.Site((), site.parse_config("")).warns


@pytest.mark.parametrize(
    ("text", "wanted", "gpus"), [(CONFIG, "", 8), (OLD, "", 8), (CONFIG, "cpu", 0), (OLD, "old", 2)]
)
def test_the_first_profile_is_one(tmp_path: Path, text: str, wanted: str, gpus: int) -> None:
    made = site.profile(site.Site(site.parse_sinfo(SINFO), site.parse_config(text)), wanted)
    site.write_profile(tmp_path / "c.toml", made)
    cluster = load_cluster(tmp_path / "c.toml")
    assert cluster.gpus == gpus
    assert cluster.slurm
    assert cluster.slurm.requeue is (text is CONFIG)
    with pytest.raises(InputError, match="already"):
        site.write_profile(tmp_path / "c.toml", made)


def test_an_unknown_partition_names_those_that_are() -> None:
    with pytest.raises(InputError) as caught:
        site.profile(site.Site(site.parse_sinfo(SINFO), {}), "gpuu")
    assert "cpu, gpu, old" in str(caught.value)


@given(st.text())
def test_no_output_breaks_the_parsers(text: str) -> None:
    site.parse_sinfo(text)
    site.parse_config(text)
