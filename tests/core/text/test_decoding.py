"""Decoding of files."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.errors import NotText
from service.core.text.decoding import PART_SIZE, decode_text, normalize_text

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
    """The encodings of Japanese and Western texts are detected."""
    assert decode_text(text.encode(codec)) == (text, name)


@pytest.mark.parametrize("before", range(4))
@pytest.mark.parametrize("codec", ["utf-8", "cp932", "euc_jp", "iso2022_jp"])
def test_characters_may_span_two_parts(codec: str, before: int) -> None:
    """The borders of the parts of a large file may fall inside a character."""
    text = "a" * (PART_SIZE - 4 + before) + JAPANESE + "\U00020bb7" * (codec == "utf-8")
    assert decode_text(text.encode(codec)) == (text, codec)
    assert normalize_text("\ufeff" + text.replace("\n", "\r\n") + "\ud800") == text + "\ufffd"


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
        b"text with three \x00 NUL \x00 inside \x00",
        b"a \x00 short",
        b"\xff\xfe" + "NUL \x00 NUL \x00 in UTF-16 \x00".encode("utf-16-le"),
        b"\x01\x02\x03\x04abc",
        bytes(range(256)) * 20,
        b"\xff\xfe\x00\xd8a\x00",
    ],
)
def test_binary_files_are_refused(data: bytes) -> None:
    """Empty files, images, archives, programs and other binary data are refused."""
    with pytest.raises(NotText):
        decode_text(data)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_few_nul_characters_are_replaced(encoding: str) -> None:
    """A text with a NUL character by accident is a text; databases cannot store NUL."""
    text = "One line of a log file \x00 with a NUL, and 返品 too\n"

    assert decode_text(text.encode(encoding))[0] == text.replace("\x00", "\ufffd")


@given(st.binary(max_size=300))
def test_only_not_text_is_raised(data: bytes) -> None:
    """Any bytes decode to a text or raise `NotText`."""
    try:
        text, _ = decode_text(data)
    except NotText:
        return
    assert normalize_text(text) == text
    text.encode()


def test_a_truncated_file_is_decoded() -> None:
    """A file that ends within a character loses only that character."""
    assert decode_text((JAPANESE * 20).encode()[:-1]) == ((JAPANESE * 20)[:-1] + "\ufffd", "utf-8")


def test_newlines_marks_and_surrogates_are_normalized() -> None:
    """Newlines become LF, the byte order mark is removed, surrogates become U+FFFD."""
    assert normalize_text("\ufeffa\r\nb\rc \ud800 ｶﾞ é") == "a\nb\nc \ufffd ｶﾞ é"
