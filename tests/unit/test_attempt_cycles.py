"""Who imports torch in a process of clipa's does not wait for Python's collector."""

from __future__ import annotations

import gc
import subprocess
import sys

from clipa.attempt.cycles import uncollected


def test_only_where_the_process_is_ours() -> None:
    frozen = gc.get_freeze_count()
    with uncollected(False):
        assert gc.isenabled()
    assert gc.get_freeze_count() == frozen
    with uncollected(True):
        assert not gc.isenabled()
    try:
        assert gc.isenabled(), "cycles of the work itself are collected"
        assert gc.get_freeze_count() > frozen
    finally:
        gc.unfreeze()


def test_the_process_of_a_run_does_so() -> None:
    code = (
        "import gc, runpy, sys; sys.argv = ['x', '/no/such/run']\n"
        "end = lambda *_: print(gc.isenabled(), gc.get_freeze_count() > 100_000, flush=True)\n"
        "import os; os._exit = end\nrunpy.run_module('clipa.eval', run_name='__main__', alter_sys=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "True True\n", done.stderr
