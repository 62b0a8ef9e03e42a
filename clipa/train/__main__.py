"""`python -m clipa.train RUN_DIR [--attempt N]`: run the training phase of a plan."""

from __future__ import annotations

import sys

from clipa.attempt.devices import joined
from clipa.attempt.process import Session, run_process
from clipa.attempt.pulse import patience_of
from clipa.data.loader import start_server
from clipa.train.trainer import Trainer


def main() -> int:
    """Entry of the module."""

    def work(session: Session) -> int:
        if session.plan.world.loader_workers:
            start_server()
        with joined(session.plan.world, patience_of(session.plan.limits)) as ranks:
            return Trainer(session, ranks).train()

    return run_process("clipa.train", ("pretrain", "finetune"), work)


if __name__ == "__main__":
    sys.exit(main())
