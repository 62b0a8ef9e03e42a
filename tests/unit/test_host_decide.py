"""When the supervisor tries again, and when it stops: the rule, as a table."""

from __future__ import annotations

import pytest

from clipa.host.decide import Trace, Verdict, decide

FAILED = Verdict("failed", "ValueError: x", retry=True)
KILLED = Verdict("killed", "SIGKILL", retry=True)


def trace(verdict: Verdict, begun: int, reached: int) -> Trace:
    return Trace(begun, reached, verdict.outcome, verdict.error)


@pytest.mark.parametrize(
    ("verdict", "history", "last", "final"),
    [
        (Verdict("done"), [Trace(0, 9, "done", "")], False, True),
        (Verdict("cancelled", "by x"), [Trace(0, 9, "cancelled", "by x")], False, True),
        (FAILED, [trace(FAILED, 0, 5)], False, False),
        (FAILED, [trace(FAILED, 0, 0), trace(FAILED, 0, 0)], False, True),
        (FAILED, [trace(FAILED, -1, -1), trace(FAILED, -1, -1)], False, True),
        (FAILED, [trace(FAILED, 0, 3), trace(FAILED, 0, 3)], False, False),
        (FAILED, [trace(FAILED, 0, 0), trace(FAILED, 4, 4)], False, False),
        (FAILED, [Trace(0, 0, "failed", "another"), trace(FAILED, 0, 0)], False, False),
        (KILLED, [trace(KILLED, 0, 0), trace(KILLED, 0, 0)], False, False),
        (FAILED, [trace(KILLED, 0, 0), trace(FAILED, 0, 0)], False, False),
        (KILLED, [trace(KILLED, 0, 0)] * 4, True, True),
        (Verdict("failed", "bad input", retry=False), [Trace(-1, -1, "failed", "bad input")], False, True),
    ],
)
def test_decide(verdict: Verdict, history: list[Trace], last: bool, final: bool) -> None:
    assert decide(verdict, history, last, 5)[1] is final


def test_the_limit_is_named() -> None:
    verdict, _ = decide(KILLED, [trace(KILLED, 0, 1)], True, 3)
    assert verdict.outcome == "failed"
    assert "3 of 3" in verdict.error
