"""The entry point."""

import subprocess
import sys

import pytest

from service import __main__ as entry


def test_the_switch_interval_is_set() -> None:
    """`kotae` sets the switch interval of the interpreter."""
    program = (
        "import sys, types, service.__main__\n"
        "app = types.SimpleNamespace(main=lambda: print(sys.getswitchinterval()))\n"
        "sys.modules['service.cli.app'] = app\n"
        "service.__main__.main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert float(result.stdout) == pytest.approx(entry.SWITCH_SECONDS)
