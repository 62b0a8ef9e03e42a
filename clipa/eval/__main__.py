"""`python -m clipa.eval RUN_DIR [--attempt N]`: run the eval phase of a plan."""

from __future__ import annotations

from clipa.attempt.cycles import uncollected
from clipa.attempt.process import RESUMABLE, Session, leave, run_process
from clipa.registry import events
from clipa.spec.card import WEIGHTS_NAME
from clipa.spec.job import Eval

with uncollected(__name__ == "__main__"):
    from clipa.attempt.devices import Ranks, joined, precision_of
    from clipa.attempt.pulse import Pulse, patience_of
    from clipa.attempt.weights import read_tensors, resolve
    from clipa.data.loader import start_server
    from clipa.eval.evaluator import Evaluator
    from clipa.model.clip import Clip


def evaluate(session: Session, ranks: Ranks) -> int:
    """Score the plan's starting weights on its sets. Returns the exit code."""
    plan, log = session.plan, session.log
    assert isinstance(plan.settings, Eval)
    assert plan.init is not None
    found = resolve(plan, plan.init)
    card = found.card
    model = Clip(card.model, card.image_size, card.text_tokens, card.positions, card.loss).to(ranks.device)
    model.load(read_tensors(found.path / WEIGHTS_NAME))
    precision = precision_of(plan.settings.precision, ranks.device)
    if log:
        log.write(events.Resolved, ref=plan.init.ref, path=str(found.path), digest=found.digest)
        log.write(
            events.Begun,
            step=0,
            steps=0,
            device=str(ranks.device),
            precision=precision,
            processes=ranks.world,
            params=sum(p.numel() for p in model.parameters()),
        )
    pulse = Pulse(session.run, session.attempt, writes=log is not None)
    evaluator = Evaluator(session.run, plan, session.attempt, ranks, precision, pulse)
    sizes = plan.settings.sizes or (card.image_size,)
    settings = plan.settings
    done = evaluator.score(
        model, card, found.digest, settings.sets, sizes, settings.batch, log, settings.resize, session.stop_file
    )
    return 0 if done else RESUMABLE


def main() -> int:
    """Entry of the module."""

    def work(session: Session) -> int:
        if session.plan.world.loader_workers:
            start_server()
        with joined(session.plan.world, patience_of(session.plan.limits)) as ranks:
            return evaluate(session, ranks)

    return run_process("clipa.eval", ("eval",), work)


if __name__ == "__main__":
    leave(main())
