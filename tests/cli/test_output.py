"""Tables, JSON and highlighted texts on standard output; progress on standard error."""

import pytest

from service.cli.output import (
    make_printable,
    print_highlighted,
    print_json,
    print_table,
    show_progress,
)


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


def test_control_characters_of_documents_are_replaced() -> None:
    """A title cannot control the terminal."""
    assert make_printable("a\x1b[31m\u3000\u009b保証\n") == "a\ufffd[31m\u3000\ufffd保証\ufffd"


def test_words_are_printed_with_their_title(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal there are no colors, and markup is text."""
    print_highlighted("[b]T[/b]", "A red kettle.", ["red", "("])

    assert capsys.readouterr().out == "[b]T[/b]\n  A red kettle.\n\n"


def test_progress_without_a_terminal_is_printed_from_time_to_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A short upload prints nothing."""
    with show_progress("Adding", 3) as advance:
        advance(3)
    with show_progress("Adding", 3, seconds=0) as advance:
        advance(1)

    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "Adding: 1 of 3\n")
