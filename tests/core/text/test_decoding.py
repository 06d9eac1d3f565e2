"""Bytes to text to sentences to chunks."""

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.errors import NotText
from service.core.text.chunking import is_heading, split
from service.core.text.decoding import PART, decode, tidy
from service.core.text.sentences import sentences

JAPANESE = "営業時間は午前9時から午後6時までです。\nお問い合わせはお電話でどうぞ。"
NARROW = "ｶﾀｶﾅﾊﾝｶｸﾃｽﾄﾃﾞｽ｡ 在庫はｻｰﾊﾞｰ室です。"
WESTERN = "Crème brûlée à la carte costs €5 – a naïve price."


@pytest.mark.parametrize(
    ("text", "codec", "name"),
    [
        ("plain ASCII.", "ascii", "utf-8"),
        (JAPANESE, "utf-8", "utf-8"),
        (JAPANESE, "utf-8-sig", "utf-8-sig"),
        (JAPANESE, "utf-16", "utf-16"),
        (JAPANESE, "utf-16-le", "utf-16-le"),
        (JAPANESE, "utf-16-be", "utf-16-be"),
        ("Plain English in wide characters.", "utf-16-le", "utf-16-le"),
        ("Plain English in wide characters.", "utf-16-be", "utf-16-be"),
        (JAPANESE, "utf-32", "utf-32"),
        (JAPANESE, "cp932", "cp932"),
        (NARROW, "cp932", "cp932"),
        ("ﾃｽﾄ", "cp932", "cp932"),
        ("日本", "cp932", "cp932"),
        ("①②③髙﨑～", "cp932", "cp932"),
        (JAPANESE, "euc_jp", "euc_jp"),
        (NARROW, "euc_jp", "euc_jp"),
        ("お茶", "euc_jp", "euc_jp"),
        (JAPANESE, "iso2022_jp", "iso2022_jp"),
        (WESTERN, "cp1252", "cp1252"),
        (WESTERN, "utf-8", "utf-8"),
    ],
)
def test_encodings(text: str, codec: str, name: str) -> None:
    """Every encoding that Japanese and Western texts come in is read as what it is."""
    assert decode(text.encode(codec)) == (text, name)


@pytest.mark.parametrize("before", range(4))
@pytest.mark.parametrize("codec", ["utf-8", "cp932", "euc_jp", "iso2022_jp"])
def test_a_character_may_begin_in_one_part_and_end_in_the_next(codec: str, before: int) -> None:
    """A large file is read in parts; their borders fall where they fall."""
    text = "a" * (PART - 4 + before) + JAPANESE + "\U00020bb7" * (codec == "utf-8")
    assert decode(text.encode(codec)) == (text, codec)
    assert tidy("\ufeff" + text.replace("\n", "\r\n") + "\ud800") == text + "\ufffd"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" \r\n\t ",
        "\u3000\n".encode(),
        b"\xef\xbb\xbf",
        b"\x89PNG\r\n\x1a\n",
        b"%PDF-1.7\n",
        b"PK\x03\x04abc",
        b"\x7fELF\x02\x01",
        b"text with a NUL \x00 inside",
        b"\x01\x02\x03\x04abc",
        bytes(range(256)) * 20,
        b"\xff\xfe\x00\xd8a\x00",
    ],
)
def test_what_is_not_a_text_is_refused(data: bytes) -> None:
    """Nothing, pictures, archives, programs and other binary data are no texts."""
    with pytest.raises(NotText):
        decode(data)


@given(st.binary(max_size=300))
def test_decode_never_fails_otherwise(data: bytes) -> None:
    """Any bytes are a text or `NotText`."""
    try:
        text, _ = decode(data)
    except NotText:
        return
    assert tidy(text) == text
    text.encode()


def test_a_cut_file_is_still_read() -> None:
    """A file that ends in the middle of a character loses that character alone."""
    assert decode((JAPANESE * 20).encode()[:-1]) == ((JAPANESE * 20)[:-1] + "\ufffd", "utf-8")


def test_newlines_marks_and_surrogates_are_tidied() -> None:
    """Newlines become LF; a byte order mark and lone surrogates go; the rest stays as it was."""
    assert tidy("\ufeffa\r\nb\rc \ud800 ｶﾞ é") == "a\nb\nc \ufffd ｶﾞ é"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("一つ。二つ！三つ？四つ", ["一つ。", "二つ！", "三つ？", "四つ"]),
        ("「はい。」と彼は言った。次。", ["「はい。」と彼は言った。", "次。"]),
        ("終わり（注：例外。）です。次です！？はい。", ["終わり（注：例外。）です。", "次です！？", "はい。"]),
        (
            "Pi is 3.14 today. Mr. Smith and Dr. J. Doe agree, e.g. here. Yes!",
            ["Pi is 3.14 today.", "Mr. Smith and Dr. J. Doe agree, e.g. here.", "Yes!"],
        ),
        ("See https://a.example/b?c=1.2. Then stop.", ["See https://a.example/b?c=1.2.", "Then stop."]),
        ('"Really?" she asked. (So it was.) End', ['"Really?" she asked.', "(So it was.)", "End"]),
        ("Open from 10 a.m. to 6 p.m. every day. Closed on Monday.", ["Open from 10 a.m. to 6 p.m. every day.", "Closed on Monday."]),
        ("# Title\nText one. Text two.\n- item. One\n2. second", ["# Title", "Text one.", "Text two.", "item.", "One", "second"]),
        ("short\nlines\n\nare apart", ["short", "lines", "are apart"]),
        (
            "This is a paragraph whose author wrapped every line by hand\nand it ends here. Next.",
            ["This is a paragraph whose author wrapped every line by hand\nand it ends here.", "Next."],
        ),
        ("Yahoo!ニュースを見る。", ["Yahoo!ニュースを見る。"]),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    """Sentences end where a reader would say so, in both languages."""
    assert [text[start:end] for start, end in sentences(text)] == expected


TEXTS = st.text(st.sampled_from(" \n。.!?「」（）#-*1aあ漢カ,、\t\u3000\u0301"), max_size=400) | st.text(max_size=200)


@given(TEXTS, st.integers(20, 120), st.integers(0, 40))
def test_pieces_slice_the_text(text: str, aim: int, overlap: int) -> None:
    """Every piece is `text[start:end]`, none is empty or far too long, each goes further, and every sentence is in one."""
    pieces = split(text, aim, overlap)
    assert all(piece.text == text[piece.start : piece.end] and piece.text.strip() for piece in pieces)
    assert all(len(piece.text) <= 2 * aim + 40 for piece in pieces)
    assert all(a.start < b.start and a.end < b.end and b.start - a.end < 1000 for a, b in pairwise(pieces))
    covered = set().union(*(range(piece.start, piece.end) for piece in pieces)) if pieces else set()
    assert all(i in covered or text[i].isspace() for start, end in sentences(text) for i in range(start, end))


def test_chunks_end_at_sentences_and_overlap_by_sentences() -> None:
    """A chunk begins and ends with whole sentences, and repeats at most `overlap` characters of the one before."""
    text = "".join(f"これは{i}番目の短い文です。" for i in range(100))
    pieces = split(text, 100, 30)
    assert all(piece.text.endswith("。") and piece.text.startswith("これは") and len(piece.text) <= 100 for piece in pieces)
    assert all(0 < a.end - b.start <= 30 for a, b in pairwise(pieces))


def test_a_heading_stays_with_its_text() -> None:
    """No chunk but the last ends with a heading."""
    text = "".join(f"## Part {i}\n\nSome words of the text. More words of it.\n\n" for i in range(30))
    for piece in split(text, 120, 30)[:-1]:
        assert not is_heading(piece.text.splitlines()[-1], 0)


def test_only_a_sentence_far_too_long_is_cut() -> None:
    """A sentence up to twice the aim stays whole; a longer one is cut after a comma where it has one."""
    assert len(split("あ" * 190 + "。", 100, 20)) == 1
    pieces = split(("あ" * 70 + "、") * 10, 100, 20)
    assert all(piece.text.endswith("、") and len(piece.text) <= 100 for piece in pieces)


@pytest.mark.parametrize("unit", ["あ", "\n", ".", "「", " ", "# a\n", ".)", "\u0301", "    - x\n", "（「『", "a.b ", "x" * 60 + "\n"])
def test_time_is_linear(unit: str) -> None:
    """A megabyte made to hurt is cut in the time of a megabyte: eight times the text takes far less than 64 times as long."""
    text = unit * (1_000_000 // len(unit))
    began = time.perf_counter()
    split(text[:125_000], 400, 80)
    part = time.perf_counter() - began
    began = time.perf_counter()
    split(text, 400, 80)
    assert time.perf_counter() - began < 32 * part + 0.5
