"""The start of the program."""

import subprocess
import sys

import pytest

from service import __main__ as entry


def test_the_service_switches_threads_ten_times_as_often() -> None:
    """`kotae` runs with the interval that the event loop needs."""
    program = (
        "import sys, types, service.__main__\n"
        "app = types.SimpleNamespace(main=lambda: print(sys.getswitchinterval()))\n"
        "sys.modules['service.cli.app'] = app\n"
        "service.__main__.main()"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert float(shown.stdout) == pytest.approx(entry.SWITCH_SECONDS)
