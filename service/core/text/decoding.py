"""Decoding of uploaded files.

The text is stored without a byte order mark and with LF newlines; lone surrogates and NUL become
U+FFFD; nothing else is changed. A file with more than a few NUL characters is binary, or UTF-16.

Encodings are tried from certain to likely: byte order mark; escape sequences of ISO-2022-JP;
strict UTF-8; UTF-16 that yields plausible characters; then charset-normalizer, restricted to the
few encodings in which Japanese and Western texts occur (unrestricted, it mistakes short EUC-JP
texts for Big5 or Korean); finally UTF-8 with a few invalid bytes, such as a file truncated within
a character.

All functions take linear time, also on adversarial input: no pattern matches beyond a fixed
distance. Large texts are processed in parts (`split_parts`): a single call would hold the
interpreter lock until its end and block all streams.
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
PART_SIZE = 100_000  # characters or bytes, processed in less than a millisecond
CONTROL_SHARE_MAX = 0.01  # of the characters; with more control characters it is not a text

_BYTE_ORDER_MARKS = (
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
_COMMON = re.compile("[\t\n\r -~\u3000-\u30ff\uff01-\uff9f]")
_LIKELY = re.compile(
    "[\t\n\r -~\u2010-\u2027\u2190-\u2193\u2460-\u24ff\u25a0-\u25ff"
    "\u3000-\u30ff\u4e00-\u9fff\uf900-\ufaff\uff01-\uff9f]"
)


def decode_text(data: bytes) -> tuple[str, str]:
    """Return the text and Python's name of its encoding. Raises `NotText` with the reason."""
    if not data.strip():
        raise NotText("the file is empty")
    for signature, file_type in _SIGNATURES:
        if data.startswith(signature):
            raise NotText(f"the file is {file_type}, not a text")
    for text, encoding in _decode_candidates(data):
        try:
            return normalize_text(text), encoding
        except NotText as error:
            refusal = error
            if encoding in {"utf-8-sig", "utf-16", "utf-32"}:
                raise
    raise refusal


def normalize_text(text: str) -> str:
    """Return the text with LF newlines, without byte order mark and lone surrogates.

    Raises `NotText`, also for NUL characters (`replace_nul`).
    """
    text = text.removeprefix("\ufeff")
    if any(replace_surrogates(part) is not part for part in split_parts(text)):
        text = replace_surrogates(text)
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    controls = 0
    for part in split_parts(text):
        matches = _CONTROL.findall(part)
        if "\0" in matches:
            raise NotText(
                "the file contains NUL characters: it is binary or has an unknown encoding"
            )
        controls += len(matches)
    if not text or text.isspace():
        raise NotText("the file contains only white space")
    if controls > _count_controls_max(text):
        raise NotText(
            "the file contains control characters: it is binary or has an unknown encoding"
        )
    return text


def replace_nul(text: str) -> str:
    """Replace NUL by U+FFFD: PostgreSQL cannot store it."""
    if "\0" not in text:
        return text
    return "".join(part.replace("\0", "\ufffd") for part in split_parts(text))


def _replace_few_nul(text: str) -> str:
    """Replace NUL characters if they are as rare as other control characters may be."""
    return replace_nul(text) if text.count("\0") <= _count_controls_max(text) else text


def _count_controls_max(text: str) -> float:
    return max(len(text) * CONTROL_SHARE_MAX, 0 if len(text) < 16 else 1)


def split_parts(text: T) -> Iterator[T]:
    """Yield the input in order, `PART_SIZE` at a time."""
    return (text[begin : begin + PART_SIZE] for begin in range(0, len(text), PART_SIZE))


def _decode_candidates(data: bytes) -> Iterator[tuple[str, str]]:
    """Yield possible texts with encodings, most certain first. Raises `NotText` at the end."""
    yield from _decode_marked(data)
    if b"\x1b" in data and _ISO_2022_JP.search(data):
        yield from _try_encodings(data, "iso2022_jp", "iso2022_jp_ext")
    yield from _try_encodings(data, "utf-8")
    yield from _decode_utf_16(data)
    if (text := _decode_strictly(data, "utf-8")) is not None:
        yield _replace_few_nul(text), "utf-8"
        raise NotText("the file is binary")
    yield from _decode_by_kana(data)
    if match := charset_normalizer.from_bytes(data, cp_isolation=CANDIDATES).best():
        yield from _try_encodings(data, match.encoding)
    elif (text := _decode_strictly(data, "cp932")) is not None and _is_likely(text, 0.9):
        # Vendor characters (①, 髙), which the detector does not recognize in short texts.
        yield text, "cp932"
    yield from _decode_broken_utf_8(data)
    raise NotText("the file is binary or has an unknown encoding")


def _is_likely(text: str, share_min: float) -> bool:
    return len(_LIKELY.findall(text)) >= len(text) * share_min


def _decode_marked(data: bytes) -> Iterator[tuple[str, str]]:
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            try:
                yield _replace_few_nul(data.decode(encoding)), encoding
            except UnicodeDecodeError as error:
                raise NotText(
                    f"the byte order mark indicates {encoding}, but it is invalid: {error.reason}"
                ) from error


def _try_encodings(data: bytes, *encodings: str) -> Iterator[tuple[str, str]]:
    for encoding in encodings:
        if (text := _decode_strictly(data, encoding)) is not None:
            yield text, encoding


def _decode_strictly(data: bytes, encoding: str) -> str | None:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        return "".join(
            [*(decoder.decode(part) for part in split_parts(data)), decoder.decode(b"", final=True)]
        )
    except UnicodeDecodeError:
        return None


def _decode_by_kana(data: bytes) -> Iterator[tuple[str, str]]:
    """Decode EUC-JP or CP932 by kana: bytes that are kana in one are not kana in the other."""
    for encoding, kana in (("euc_jp", _ALL_KANA), ("cp932", _KANA)):
        text = _decode_strictly(data, encoding)
        if text is not None and len(kana.findall(text, 0, 2000)) >= 0.2 * min(len(text), 2000):
            yield text, encoding


def _decode_utf_16(data: bytes) -> Iterator[tuple[str, str]]:
    """Decode UTF-16 without a mark if a fifth of the characters is common, and 95 % plausible."""
    for encoding in ("utf-16-le", "utf-16-be"):
        head = _decode_strictly(data[:2000], encoding) if len(data) % 2 == 0 else None
        if (
            head
            and len(_COMMON.findall(head)) >= len(head) * 0.2
            and _is_likely(head, 0.95)
            and (text := _decode_strictly(data, encoding)) is not None
        ):
            yield text, encoding


def _decode_broken_utf_8(data: bytes) -> Iterator[tuple[str, str]]:
    text = data.decode("utf-8", "replace")
    broken = text.count("\ufffd")
    whole = sum(1 for character in text if character > "\x7f") - broken
    if broken * 10 <= whole and broken * 100 <= len(text):
        yield text, "utf-8"
