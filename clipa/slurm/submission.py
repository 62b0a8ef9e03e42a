"""Read what `sbatch` answered: which job it made, and whether an error means that it made none."""

from __future__ import annotations

import re
from typing import NamedTuple

_SUBMITTED = re.compile(r"Submitted batch job (?P<id>\d+)(?: on cluster (?P<cluster>\S+))?")
_BARE = re.compile(r"(?P<id>\d+)(?:;(?P<cluster>\S+))?")
_LOST = re.compile(
    r"timed out|timeout|unable to contact|connection (?:refused|reset|aborted)|zero bytes|communication|"
    r"unexpected message|broken pipe|try again|slurm_receive_msg|no route to host|network is unreachable",
    re.IGNORECASE,
)
"""Words of an error after which the controller may have taken the job all the same."""


class Submitted(NamedTuple):
    """A job that SLURM took: its id, and the cluster where sbatch names one."""

    job: str
    cluster: str = ""


def parse(answer: str) -> Submitted | None:
    """Return the job of sbatch's answer; None if there is none, or more than one could be meant.

    A site's wrapper may print a banner, or the bare id: only a line that says `Submitted batch job N` counts, else a
    line that is a number (`N;CLUSTER` with --parsable).
    """
    lines = [line.strip() for line in answer.splitlines()]
    for pattern in (_SUBMITTED, _BARE):
        found = {Submitted(m["id"], m["cluster"] or "") for line in lines if (m := pattern.fullmatch(line))}
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def may_be_lost(error: str) -> bool:
    """Return True if an error of sbatch leaves open whether the controller took the job."""
    return _LOST.search(error) is not None
