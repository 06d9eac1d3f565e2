"""Tables and JSON on standard output."""

import pytest

from service.cli.output import print_json, print_table


def test_columns_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers are aligned to the right, and characters of double width count twice."""
    print_table(("NAME", "COUNT"), [("茶", 5), ("ab", 1_000), (None, 0)], right=["COUNT"], empty="")

    assert capsys.readouterr().out.splitlines() == [
        "NAME  COUNT",
        "茶        5",
        "ab     1000",
        "          0",
    ]


def test_long_rows_are_not_cut_in_pipes(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal a row is one line of any length, and markup is not interpreted."""
    print_table(("NAME",), [("[bold]" + "x" * 500,)], empty="")

    assert "[bold]" + "x" * 500 in capsys.readouterr().out.splitlines()[1]


def test_an_empty_table_is_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    """The hint is on standard error, so that a pipe receives nothing."""
    print_table(("NAME",), [], empty="nothing yet: do this")

    assert capsys.readouterr() == ("", "nothing yet: do this\n")


def test_json_is_one_object_per_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Each item is one line."""
    print_json([{"a": "茶"}, {"b": None}])

    assert capsys.readouterr().out == '{"a":"茶"}\n{"b":null}\n'
