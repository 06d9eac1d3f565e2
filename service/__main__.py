"""Entry point of the command `kotae`: configures the garbage collector and the interpreter lock.

The garbage collector is off during imports: imported objects are not garbage, and scanning these
250,000 objects repeatedly takes a sixth of the startup time. Then they are excluded from later
collections (`gc.freeze`). An answer leaves no reference cycle (checked by `tests/test_budget.py`),
so a collection only finds objects in use, and it pauses every stream for a microsecond or two per
object. Therefore the youngest 1,000 objects are collected often and the older generations rarely.

A thread that computes releases the interpreter lock after `SWITCH_SECONDS` if another one waits, a
tenth of the default: the event loop waits that long thousands of times per second
(docs/decisions/0014).
"""

import gc
import os
import sys
from typing import TYPE_CHECKING

from service.core.lazy import LazyModule, load_module

if TYPE_CHECKING:
    from service.cli import app
else:
    app = LazyModule("service.cli.app")

THRESHOLDS = 1_000, 200, 250
SWITCH_SECONDS = 0.0005


def main() -> None:
    """Import the command line and run it. Files that it creates are private to the user."""
    os.umask(0o077)
    gc.disable()
    load_module(app)
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    gc.enable()
    sys.setswitchinterval(SWITCH_SECONDS)
    app.main()


if __name__ == "__main__":
    main()
