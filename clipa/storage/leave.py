"""How a process that has used a store ends: at once. Threads that wait for a store that hangs would hold it."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn


def ends_at_once(main: Callable[[], int]) -> NoReturn:
    """Run a module's entry and leave with its exit code; what it did not catch is printed, and is exit code 1.

    Nothing is lost by it: final names are whole at any moment, and what was printed is written first.
    """
    try:
        code = main()
    except SystemExit as asked:  # argparse: 0 after --help, 2 for a wrong argument, which it has said
        code = asked.code if isinstance(asked.code, int) else 1
    except BrokenPipeError:  # the reader of our output has gone, as in `clipa data doctor x | head`
        code = 141
    except BaseException:
        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # whoever read it has gone
            stream.flush()
    os._exit(code)
