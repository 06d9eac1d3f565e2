"""The entry of the command `kotae`: gets the program into memory quickly, and leaves it there.

Nothing that is imported is garbage, so the collector is off until everything is there: it would look at the same quarter of
a million objects again and again, a sixth of the start. After that it does not look at them any more at all (`gc.freeze`),
which is what a full collection would spend its time with. An answer leaves no cycle behind (`tests/test_budget.py` holds it to
that), so a collection finds nothing but the answers in progress and those on their way to the database, objects that are in
use, and stops every stream while it looks, a microsecond or two for each. So it looks at the newest thousand often, and at
those that outlived it once in a million.

A thread that computes gives the interpreter's lock to another that wants it after `SWITCH_SECONDS`, a tenth of the default:
that is what the event loop waits for when its turn comes, thousands of times a second (docs/decisions/0014).
"""

import gc
import sys
from typing import TYPE_CHECKING

from service.core.lazy import LazyModule, load_module

if TYPE_CHECKING:
    from service.cli import app
else:
    app = LazyModule("service.cli.app")

THRESHOLDS = 1_000, 1_000, 50
SWITCH_SECONDS = 0.0005


def main() -> None:
    """Load the command line, and run it."""
    gc.disable()
    load_module(app)
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    gc.enable()
    sys.setswitchinterval(SWITCH_SECONDS)
    app.main()


if __name__ == "__main__":
    main()
