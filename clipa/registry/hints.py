"""What a person can do about a run in a state: the next command."""

from __future__ import annotations

from clipa.registry.state import Facts, State

_HINTS = {
    State.FAILED: "clipa resume {run}",
    State.CANCELLED: "clipa resume {run}",
    State.INTERRUPTED: "clipa resume {run}",
    # The run that it waits for must be resumed first: the group's name means all that is not done, in order.
    State.BLOCKED: "clipa resume {group}",
    State.UNKNOWN: "clipa doctor",
}


def with_remote(facts: Facts, state: State, why: str) -> str:
    """Return the reason for a state, and that not all of a run that is over is at its publish URL."""
    if not state.is_over or facts.remote is None or facts.remote.whole:
        return why
    left = f"not all of it is at the URL to publish to: {facts.remote.why or 'nobody knows why'}"
    return f"{why}; {left}" if why else left


def hint(facts: Facts, state: State) -> str:
    """Return the command that helps a run in this state; empty for none."""
    if state is State.DONE and facts.remote and not facts.remote.whole:
        return f"python -m clipa.staging.publish {facts.path}"
    return _HINTS.get(state, "").format(run=facts.plan.run, group=facts.plan.group)
