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
import unicodedata
from collections.abc import Iterator
from typing import TypeVar

import charset_normalizer
import msgspec

from service.core.errors import NotText
from service.core.events import clean

T = TypeVar("T", str, bytes)

CANDIDATES = ["cp932", "euc_jp", "iso2022_jp", "cp1252"]
PART = 100_000  # characters or bytes: less than a millisecond
TITLE_CHARACTERS_MAX = 300
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
_FIRST_LINE = re.compile(r"\S.{0,999}")  # its beginning
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufffe\uffff]")
_KANA = re.compile("[\u3041-\u3096\u30a1-\u30fc]")
_ALL_KANA = re.compile("[\u3041-\u3096\u30a1-\u30fc\uff66-\uff9d]")
_PLAIN = re.compile("[\t\n\r -~\u3000-\u30ff\uff01-\uff9f]")
_LIKELY = re.compile("[\t\n\r -~\u2010-\u2027\u2190-\u2193\u2460-\u24ff\u25a0-\u25ff\u3000-\u30ff\u4e00-\u9fff\uf900-\ufaff\uff01-\uff9f]")


def decode(data: bytes) -> tuple[str, str]:
    """(text, name of its encoding as Python knows it). Raises `NotText` with the reason."""
    if not data.strip():
        raise NotText("The file is empty.")
    for signature, what in _SIGNATURES:
        if data.startswith(signature):
            raise NotText(f"This is {what}, not a text.")
    for text, encoding in _readings(data):
        try:
            return tidy(text), encoding
        except NotText as reason:
            refusal = reason
            if encoding in {"utf-8-sig", "utf-16", "utf-32"}:
                raise
    raise refusal


def tidy(text: str) -> str:
    """The text as we keep it: newlines as LF, no byte order mark, no lone surrogate. Raises `NotText` if it is none."""
    text = text.removeprefix("\ufeff")
    if any(clean(part) is not part for part in parts(text)):
        text = clean(text)
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    controls = 0
    for part in parts(text):
        found = _CONTROL.findall(part)
        if "\0" in found:
            raise NotText("The file contains NUL characters: it is binary, or in an encoding that is not supported.")
        controls += len(found)
    if not text or text.isspace():
        raise NotText("The file contains nothing but white space.")
    if controls > max(len(text) * CONTROL_SHARE_MAX, 0 if len(text) < 16 else 1):
        raise NotText("The file contains control characters: it is binary, or in an encoding that is not supported.")
    return text


def parts(text: T) -> Iterator[T]:
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
    elif (text := _strict(data, "cp932")) is not None and len(_LIKELY.findall(text)) >= len(text) * 0.9:
        yield text, "cp932"  # the vendor's own characters (①, 髙), of which the detector is shy in short texts
    yield from _broken_utf_8(data)
    raise NotText("The file is binary, or in an encoding that is not supported.")


def _marked(data: bytes) -> Iterator[tuple[str, str]]:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            try:
                yield data.decode(encoding), encoding
            except UnicodeDecodeError as error:
                raise NotText(f"The byte order mark says {encoding}, but the bytes are not: {error.reason}.") from error


def _strictly(data: bytes, *encodings: str) -> Iterator[tuple[str, str]]:
    for encoding in encodings:
        if (text := _strict(data, encoding)) is not None:
            yield text, encoding


def _strict(data: bytes, encoding: str) -> str | None:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        return "".join([*(decoder.decode(part) for part in parts(data)), decoder.decode(b"", final=True)])
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

_CLOSERS = "」』）)】〕》〉”’\"'］\\]*_"
_MARKER = re.compile(r"[ \t\u3000]*(?:[-*+•・◦▪–][ \t\u3000]+|[・•]|\(?\d{1,3}[.)][ \t\u3000]+)?(?=\S)")
_BORDER = re.compile(
    r"[ \t\u3000]*(?:#{1,6}[ \t]|[-*+•・◦▪–][ \t]|[・•■●◆▼○]|\(?\d{1,3}[.)][ \t]|\||>|```|[-=*_]{3,}[ \t]*$|[A-Z]\w{0,12}:[ \t])"
)
_LINE = re.compile(r"[^\n]+")
# What may end a sentence: a quotation is passed over whole, so that a full stop inside it ends nothing.
# One class of characters first, so that most of a text is passed over quickly; then what each of them begins.
_END = re.compile(
    rf"[「『（。！？｡．!?.](?:(?<=「)[^「」\n]{{0,80}}」|(?<=『)[^『』\n]{{0,80}}』|(?<=（)[^（）\n]{{0,80}}）"
    rf"|(?<=[。！？｡．!?.])[。！？｡．!?.]*[{_CLOSERS}]{{0,8}})"
)
_ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|Mt|vs|No|Nos|Fig|Figs|Eq|Sec|Vol|pp?|approx|ca|cf|al|e\.g|i\.e"
    r"|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)|\b[A-Z])$"
)
_JAPANESE = re.compile("[\u3005-\u30ff\u4e00-\u9fff\uff10-\uff9f「『（]")


def sentences(text: str) -> list[tuple[int, int]]:
    """Offsets of the sentences, in order. List markers are left out; a heading, a list item or a row is its own."""
    found: list[tuple[int, int]] = []
    for start, end in _blocks(text):
        found += _within(text, start, end)
    return found


def _blocks(text: str) -> Iterator[tuple[int, int]]:
    """Lines that are not empty, where a line that was only wrapped goes on in the next."""
    start = None
    for line in _LINE.finditer(text):
        start = line.start() if start is None else start
        if not _wrapped(text, *line.span()):
            yield start, line.end()
            start = None


def _wrapped(text: str, start: int, end: int) -> bool:
    """Whether the line that ends at a newline is a wrapped one: long, unfinished, and the next begins nothing new."""
    following = end + 1
    if not 25 <= end - start <= 200 or following >= len(text) or text[following] in "\n \t\u3000":
        return False
    line = text[start:end]
    wide = sum(1 for character in line if character > "\u2e7f")
    if len(line) + wide < 50 or line[-1] in "。！？｡!?.:：;；」）" or line.endswith("  ") or line.lstrip().startswith(("#", "|")):
        return False
    return not _BORDER.match(text, following, min(following + 40, len(text)))


def _within(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The sentences of one block."""
    marker = _MARKER.match(text, start, end)
    if marker is None:
        return
    start = marker.end()
    if text[start] != "#":
        for match in _END.finditer(text, start, end):
            if _ends(text, start, match.start(), match.end(), end):
                yield start, match.end()
                start = match.end()
                while start < end and text[start].isspace():
                    start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    if start < end:
        yield start, end


def _ends(text: str, start: int, first: int, last: int, end: int) -> bool:
    """Whether what stands at `first:last` ends the sentence that began at `start`."""
    mark = text[first]
    after = text[last] if last < end else ""
    if mark in "「『（":
        return False
    if mark in "。！？｡":
        # 「はい。」と言った: the sentence goes on after its quotation.
        return not (last - first > 1 and text[last - 1] in "」』）" and after and after in "とっでのにをはが、")
    if not after or after.isspace():
        return not after or _ends_before_space(text, start, first, last, end)
    if mark == "．":
        return not after.isdigit()
    return mark in "!?" and first > start and bool(_JAPANESE.match(after) and _JAPANESE.match(text[first - 1]))


def _ends_before_space(text: str, start: int, first: int, last: int, end: int) -> bool:
    """Western full stops: not before a small letter, and not after an abbreviation or an initial."""
    if text[last : min(last + 20, end)].lstrip()[:1].islower():
        return False
    return text[first] != "." or last - first > 1 or not _ABBREVIATION.search(text, max(start, first - 12), first)


# --- chunks


class Piece(msgspec.Struct, frozen=True):
    """A chunk: `text` is `whole[start:end]`."""

    start: int
    end: int
    text: str


def split(text: str, aim: int, overlap: int) -> list[Piece]:
    """Chunks of whole sentences, about `aim` characters each and at most twice as long.

    A chunk repeats up to `overlap` characters of whole sentences of the one before, but nothing across a heading. Only
    a sentence longer than `2 * aim` is cut.
    """
    units = [unit for span in sentences(text) for unit in _cut(text, *span, aim)]
    pieces = []
    first = 0
    while first < len(units):
        last = _fill(text, units, first, aim)
        start, end = _line_start(text, units, first), units[last][1]
        pieces.append(Piece(start, end, text[start:end]))
        first = _next(text, units, first, last, aim, overlap)
    return pieces


def _fill(text: str, units: list[tuple[int, int]], first: int, aim: int) -> int:
    """The last unit of the chunk that begins with `first`. A section that begins late ends it: its heading goes with it."""
    last, body = first, not is_heading(text, units[first][0])
    while last + 1 < len(units) and units[last + 1][1] - units[first][0] <= aim:
        heading = is_heading(text, units[last + 1][0])
        if heading and body and units[last][1] - units[first][0] >= aim // 2:
            break
        last += 1
        body = body or not heading
    if last + 1 < len(units) and is_heading(text, units[last][0]):
        if body:
            while is_heading(text, units[last][0]):
                last -= 1
        elif units[last + 1][1] - units[first][0] <= 2 * aim:
            last += 1  # a heading and its first sentence belong together, even a little over the aim
    return last


def _next(text: str, units: list[tuple[int, int]], first: int, last: int, aim: int, overlap: int) -> int:
    """The first unit of the next chunk: back as far as the overlap allows, and never without something new."""
    begin = last + 1
    if begin >= len(units) or is_heading(text, units[begin][0]):
        return begin
    while (
        begin - 1 > first
        and units[last][1] - units[begin - 1][0] <= overlap
        and units[last + 1][1] - units[begin - 1][0] <= aim
        and not is_heading(text, units[begin - 1][0])
    ):
        begin -= 1
    return begin


def title_of(text: str) -> str:
    """What a text is called that was given no title: its first line that says something."""
    match = _FIRST_LINE.search(text)
    first = match[0].splitlines()[0].strip() if match else ""
    return (first.lstrip("#").strip() or first)[:TITLE_CHARACTERS_MAX]


def is_heading(text: str, start: int) -> bool:
    """Whether a Markdown heading begins here."""
    return text.startswith("#", start)


def _line_start(text: str, units: list[tuple[int, int]], index: int) -> int:
    """Where a unit's line begins, list marker included, if nothing but the marker stands before it."""
    start = units[index][0]
    floor = max(units[index - 1][1] if index else 0, start - 16)
    line = text.rfind("\n", floor, start) + 1 or floor
    marker = _MARKER.match(text, line, start + 1)
    begin = line if marker and marker.end() == start else start
    while begin < start and text[begin].isspace():
        begin += 1
    return begin


def _cut(text: str, start: int, end: int, aim: int) -> Iterator[tuple[int, int]]:
    """A sentence as it is, or in parts of at most `aim` characters, cut after a comma or a space where there is one."""
    if end - start > 2 * aim:
        while end - start > aim:
            cut = max(text.rfind(stop, start + aim // 2, start + aim) for stop in "、，, \n") + 1 or start + aim
            while cut < end and cut < start + aim + 16 and unicodedata.combining(text[cut]):
                cut += 1
            yield start, cut
            start = cut
    if text[start:end].strip():
        yield start, end
