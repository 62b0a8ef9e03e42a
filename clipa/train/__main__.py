"""`python -m clipa.train RUN_DIR [--attempt N]`: run the training phase of a plan."""

from __future__ import annotations

import os

from clipa.attempt.cycles import uncollected
from clipa.attempt.process import Session, leave, run_process

with uncollected(__name__ == "__main__"):
    from clipa.attempt.devices import joined
    from clipa.attempt.pulse import patience_of
    from clipa.data.loader import start_server
    from clipa.train.trainer import Trainer


def main() -> int:
    """Entry of the module."""

    def work(session: Session) -> int:
        if getattr(session.plan.settings, "deterministic", False):
            # cuBLAS reads it when CUDA begins; until torch 2.9 deterministic algorithms refuse to go on without it.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        if session.plan.world.loader_workers:
            start_server()
        with joined(session.plan.world, patience_of(session.plan.limits)) as ranks:
            return Trainer(session, ranks).train()

    return run_process("clipa.train", ("pretrain", "finetune"), work)


if __name__ == "__main__":
    leave(main())
