"""How long leaving takes: when a job is asked to save before its time is over, and how often it saves meanwhile."""

from __future__ import annotations

from typing import NamedTuple

CHECKPOINT_BYTES = 12
"""Bytes of a checkpoint per parameter: fp32 weights and AdamW's two moments."""
SLACK_S = 30.0
"""Seconds until every process has noticed: the step in hand, the supervisor's poll, the agreement of the ranks."""
SCHEDULER_S = 60.0
"""SLURM looks at time limits every 30 s or so: a warning and the kill may both come that much early (sbatch(1))."""
MOST_LOST_MINUTES = 10.0


class Leave(NamedTuple):
    """`lead_s`: warning before the end of the time; `leave_s`: what processes get to save; `every_minutes`: save at
    least so often (None: as the recipe says); `note`: for people, where something had to give.
    """

    lead_s: int
    leave_s: float
    every_minutes: float | None
    note: str


def leave(params: int, write_mb_s: float, minutes: int, grace_s: int) -> Leave:
    """The times of a job.

    Args:
        params: parameters of the model.
        write_mb_s: what one process writes, in MB/s.
        minutes: the job's wall-clock limit.
        grace_s: seconds between a preemption's warning and its kill; 0: not known.
    """
    save_s = params * CHECKPOINT_BYTES / (write_mb_s * 1e6)
    leave_s = SLACK_S + 2 * save_s  # one may be in flight, and then there is the last one
    lead_s = min(round(leave_s + SCHEDULER_S), minutes * 60 // 2)
    if not 0 < grace_s < leave_s:
        return Leave(lead_s, leave_s, None, "")
    note = (
        f"preemption gives {grace_s} s, saving may take {leave_s:.0f} s: "
        f"saves at least every {MOST_LOST_MINUTES:.0f} minutes, so that no more is lost"
    )
    return Leave(lead_s, leave_s, MOST_LOST_MINUTES, note)
