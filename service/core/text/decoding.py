"""Bytes → text → sentences → chunks. Pure.

What is kept of a text: everything but a byte order mark, the flavour of its newlines and lone surrogates. Offsets count
characters of that text, and every piece is exactly `text[start:end]`.

Encodings are tried from the certain to the likely: a byte order mark; strict UTF-8; the escape sequences of ISO-2022-JP;
UTF-16 whose reading makes sense; then charset-normalizer among the few encodings that Japanese and Western texts come
in. Left to choose freely it takes short EUC-JP texts for Big5 or Korean. Last, UTF-8 with a few broken bytes, such as
a file that was cut in the middle of a character.

Every function is linear in its input, also on input made to hurt: no pattern here looks further than a fixed distance. A large
text is looked at in `parts`: one call for all of it would keep the interpreter's lock to its end, and every stream would wait.
"""

import codecs
import re
from collections.abc import Iterator
from typing import TypeVar

import charset_normalizer

from service.core.encoding import replace_surrogates
from service.core.errors import NotText

T = TypeVar("T", str, bytes)

CANDIDATES = ["cp932", "euc_jp", "iso2022_jp", "cp1252"]
PART = 100_000  # characters or bytes: less than a millisecond
CONTROL_SHARE_MAX = 0.01  # of a text's characters; more than that is no text

_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_SIGNATURES = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"%PDF-", "a PDF"),
    (b"PK\x03\x04", "a zip archive or an office document"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\xd0\xcf\x11\xe0", "an old office document"),
    (b"\x7fELF", "a program"),
    (b"SQLite format 3\0", "a database"),
)
_ISO_2022_JP = re.compile(rb"\x1b(?:\$[@B]|\([JI])")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufffe\uffff]")
_KANA = re.compile("[\u3041-\u3096\u30a1-\u30fc]")
_ALL_KANA = re.compile("[\u3041-\u3096\u30a1-\u30fc\uff66-\uff9d]")
_PLAIN = re.compile("[\t\n\r -~\u3000-\u30ff\uff01-\uff9f]")
_LIKELY = re.compile(
    "[\t\n\r -~\u2010-\u2027\u2190-\u2193\u2460-\u24ff\u25a0-\u25ff\u3000-\u30ff\u4e00-\u9fff\uf900-\ufaff\uff01-\uff9f]"
)


def decode_text(data: bytes) -> tuple[str, str]:
    """(text, name of its encoding as Python knows it). Raises `NotText` with the reason."""
    if not data.strip():
        raise NotText("The file is empty.")
    for signature, what in _SIGNATURES:
        if data.startswith(signature):
            raise NotText(f"This is {what}, not a text.")
    for text, encoding in _readings(data):
        try:
            return normalize_text(text), encoding
        except NotText as reason:
            refusal = reason
            if encoding in {"utf-8-sig", "utf-16", "utf-32"}:
                raise
    raise refusal


def normalize_text(text: str) -> str:
    """The text as we keep it: newlines as LF, no byte order mark, no lone surrogate. Raises `NotText` if it is none."""
    text = text.removeprefix("\ufeff")
    if any(replace_surrogates(part) is not part for part in split_parts(text)):
        text = replace_surrogates(text)
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    controls = 0
    for part in split_parts(text):
        found = _CONTROL.findall(part)
        if "\0" in found:
            raise NotText(
                "The file contains NUL characters: it is binary, or in an encoding that is not supported."
            )
        controls += len(found)
    if not text or text.isspace():
        raise NotText("The file contains nothing but white space.")
    if controls > max(len(text) * CONTROL_SHARE_MAX, 0 if len(text) < 16 else 1):
        raise NotText(
            "The file contains control characters: it is binary, or in an encoding that is not supported."
        )
    return text


def split_parts(text: T) -> Iterator[T]:
    """All of it in order, `PART` at a time."""
    return (text[begin : begin + PART] for begin in range(0, len(text), PART))


def _readings(data: bytes) -> Iterator[tuple[str, str]]:
    """What the bytes may say, most certain first. Raises `NotText` when nothing is left."""
    yield from _marked(data)
    if b"\x1b" in data and _ISO_2022_JP.search(data):
        yield from _strictly(data, "iso2022_jp", "iso2022_jp_ext")
    yield from _strictly(data, "utf-8")
    yield from _utf_16(data)
    if _strict(data, "utf-8") is not None:
        raise NotText("The file is binary.")
    yield from _by_kana(data)
    if found := charset_normalizer.from_bytes(data, cp_isolation=CANDIDATES).best():
        yield from _strictly(data, found.encoding)
    elif (text := _strict(data, "cp932")) is not None and len(_LIKELY.findall(text)) >= len(
        text
    ) * 0.9:
        yield (
            text,
            "cp932",
        )  # the vendor's own characters (①, 髙), of which the detector is shy in short texts
    yield from _broken_utf_8(data)
    raise NotText("The file is binary, or in an encoding that is not supported.")


def _marked(data: bytes) -> Iterator[tuple[str, str]]:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            try:
                yield data.decode(encoding), encoding
            except UnicodeDecodeError as error:
                raise NotText(
                    f"The byte order mark says {encoding}, but the bytes are not: {error.reason}."
                ) from error


def _strictly(data: bytes, *encodings: str) -> Iterator[tuple[str, str]]:
    for encoding in encodings:
        if (text := _strict(data, encoding)) is not None:
            yield text, encoding


def _strict(data: bytes, encoding: str) -> str | None:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        return "".join(
            [*(decoder.decode(part) for part in split_parts(data)), decoder.decode(b"", final=True)]
        )
    except UnicodeDecodeError:
        return None


def _by_kana(data: bytes) -> Iterator[tuple[str, str]]:
    """EUC-JP or CP932, where kana decide: the bytes of the one's kana are no kana in the other."""
    for encoding, kana in (("euc_jp", _ALL_KANA), ("cp932", _KANA)):
        text = _strict(data, encoding)
        if text is not None and len(kana.findall(text, 0, 2000)) >= 0.2 * min(len(text), 2000):
            yield text, encoding


def _utf_16(data: bytes) -> Iterator[tuple[str, str]]:
    """UTF-16 without a mark, where one byte order gives letters that go together: a fifth plain ones, all likely."""
    for encoding in ("utf-16-le", "utf-16-be"):
        head = _strict(data[:2000], encoding) if len(data) % 2 == 0 else None
        if (
            head
            and len(_PLAIN.findall(head)) >= len(head) * 0.2
            and len(_LIKELY.findall(head)) >= len(head) * 0.95
            and (text := _strict(data, encoding)) is not None
        ):
            yield text, encoding


def _broken_utf_8(data: bytes) -> Iterator[tuple[str, str]]:
    text = data.decode("utf-8", "replace")
    broken = text.count("\ufffd")
    whole = sum(1 for character in text if character > "\x7f") - broken
    if broken * 10 <= whole and broken * 100 <= len(text):
        yield text, "utf-8"


# --- sentences


# --- chunks
