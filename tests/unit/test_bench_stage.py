"""What `clipa bench stage` tells of a tool that fails."""

from __future__ import annotations

from clipa.bench.stage import Cost, measure


def test_a_tool_that_fails_is_told_in_one_line() -> None:
    assert (
        measure(["sh", "-c", "echo Traceback >&2; echo 'why: no such bucket' >&2; exit 3"], {}) == "why: no such bucket"
    )
    assert measure(["sh", "-c", "exit 3"], {}) == "exit code 3"
    assert isinstance(measure(["true"], {}), Cost)
