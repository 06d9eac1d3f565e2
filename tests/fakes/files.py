"""Small files of each format, built with the standard library."""

import io
import zipfile
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

_WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_SHEET = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_SLIDES = "http://schemas.openxmlformats.org/presentationml/2006/main"
_DRAWING = "http://schemas.openxmlformats.org/drawingml/2006/main"
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"
_CORE = (
    f'<c:coreProperties xmlns:c="{_PACKAGE}/metadata/core-properties" '
    'xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:t="http://purl.org/dc/terms/">'
    "<dc:title>{title}</dc:title><t:modified>2024-05-06T07:08:09Z</t:modified></c:coreProperties>"
)


def build_zip(entries: Mapping[str, str | bytes]) -> bytes:
    """A zip archive."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


def build_pdf(pages: Sequence[str], *, title: str = "") -> bytes:
    """A PDF with these pages, one line of text per line, in Latin-1."""
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Count %d /Kids [%s] >>"
        % (len(pages), b" ".join(b"%d 0 R" % (5 + 2 * n) for n in range(len(pages)))),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
        b"<< /Title (%s) /ModDate (D:20240506070809Z) >>" % title.encode("latin-1"),
    ]
    for n, page in enumerate(pages):
        lines = [_show_line(line, 740 - 14 * m) for m, line in enumerate(page.split("\n"))]
        stream = b"BT " + b" ".join(lines) + b" ET"
        objects += [
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents %d 0 R "
            b"/Resources << /Font << /F 3 0 R >> >> >>" % (6 + 2 * n),
            b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        ]
    return _join_pdf_objects(objects)


def _show_line(line: str, y: int) -> bytes:
    """A line begins with `# ` if it is a heading, which has a larger font."""
    size = 20 if line.startswith("# ") else 11
    text = line.removeprefix("# ").encode("latin-1")
    for character in (b"\\", b"(", b")"):
        text = text.replace(character, b"\\" + character)
    return b"/F %d Tf 1 0 0 1 50 %d Tm (%s) Tj" % (size, y, text)


def _join_pdf_objects(objects: Sequence[bytes]) -> bytes:
    data, offsets = bytearray(b"%PDF-1.4\n"), []
    for n, content in enumerate(objects, 1):
        offsets.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (n, content)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    return bytes(data) + (
        b"xref\n0 %d\n0000000000 65535 f \n%strailer\n<< /Size %d /Root 1 0 R /Info 4 0 R >>\n"
        b"startxref\n%d\n%%%%EOF\n" % (len(offsets) + 1, table, len(offsets) + 1, len(data))
    )


def build_docx(body: str, *, title: str = "", declaration: str = "") -> bytes:
    """A Word document with a body in WordprocessingML; see `word_paragraph`."""
    document = f'{declaration}<w:document xmlns:w="{_WORD}"><w:body>{body}</w:body></w:document>'
    kind = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    return build_zip(
        {
            "[Content_Types].xml": _content_types({"/word/document.xml": kind}),
            "_rels/.rels": _relationships({"r1": ("officeDocument", "word/document.xml")}),
            "word/document.xml": document,
            "docProps/core.xml": _CORE.format(title=escape(title)),
        }
    )


def word_paragraph(text: str, style: str = "") -> str:
    """A paragraph, for example in the style `Heading1`."""
    properties = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f"<w:p>{properties}<w:r><w:t>{escape(text)}</w:t></w:r></w:p>"


def word_table(rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    cells = ("".join(f"<w:tc>{word_paragraph(cell)}</w:tc>" for cell in row) for row in rows)
    return f"<w:tbl>{''.join(f'<w:tr>{row}</w:tr>' for row in cells)}</w:tbl>"


def build_xlsx(sheets: Mapping[str, Sequence[Sequence[str | float]]]) -> bytes:
    """A workbook with strings and numbers."""
    kind = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet.main+xml"
    names = "".join(
        f'<sheet name="{escape(name)}" sheetId="{n}" r:id="r{n}"/>'
        for n, name in enumerate(sheets, 1)
    )
    entries = {
        "[Content_Types].xml": _content_types({"/xl/workbook.xml": kind}),
        "_rels/.rels": _relationships({"r1": ("officeDocument", "xl/workbook.xml")}),
        "xl/workbook.xml": f'<workbook xmlns="{_SHEET}" xmlns:r="{_OFFICE}">'
        f"<sheets>{names}</sheets></workbook>",
        "xl/_rels/workbook.xml.rels": _relationships(
            {f"r{n}": ("worksheet", f"worksheets/sheet{n}.xml") for n in range(1, len(sheets) + 1)}
        ),
    }
    for n, rows in enumerate(sheets.values(), 1):
        cells = "".join(f"<row>{''.join(map(_sheet_cell, row))}</row>" for row in rows)
        entries[f"xl/worksheets/sheet{n}.xml"] = (
            f'<worksheet xmlns="{_SHEET}"><sheetData>{cells}</sheetData></worksheet>'
        )
    return build_zip(entries)


def _sheet_cell(value: str | float) -> str:
    if isinstance(value, str):
        return f'<c t="inlineStr"><is><t>{escape(value)}</t></is></c>'
    return f"<c><v>{value}</v></c>"


def build_pptx(slides: Sequence[Sequence[str]], *, title: str = "") -> bytes:
    """A presentation; the first text of each slide is its title, the others are paragraphs."""
    kind = "application/vnd.openxmlformats-officedocument.presentationml.presentation.main+xml"
    ids = "".join(f'<p:sldId id="{256 + n}" r:id="r{n}"/>' for n in range(len(slides)))
    entries = {
        "[Content_Types].xml": _content_types({"/ppt/presentation.xml": kind}),
        "_rels/.rels": _relationships({"r1": ("officeDocument", "ppt/presentation.xml")}),
        "ppt/presentation.xml": f'<p:presentation xmlns:p="{_SLIDES}" xmlns:r="{_OFFICE}">'
        f"<p:sldIdLst>{ids}</p:sldIdLst></p:presentation>",
        "ppt/_rels/presentation.xml.rels": _relationships(
            {f"r{n}": ("slide", f"slides/slide{n}.xml") for n in range(len(slides))}
        ),
        "docProps/core.xml": _CORE.format(title=escape(title)),
    }
    for n, (heading, *texts) in enumerate(slides):
        shapes = _slide_shape([heading], "title") + _slide_shape(texts, "body")
        entries[f"ppt/slides/slide{n}.xml"] = (
            f'<p:sld xmlns:p="{_SLIDES}" xmlns:a="{_DRAWING}"><p:cSld><p:spTree>{shapes}'
            "</p:spTree></p:cSld></p:sld>"
        )
    return build_zip(entries)


def _slide_shape(texts: Sequence[str], kind: str) -> str:
    paragraphs = "".join(f"<a:p><a:r><a:t>{escape(text)}</a:t></a:r></a:p>" for text in texts)
    placeholder = f'<p:nvSpPr><p:nvPr><p:ph type="{kind}"/></p:nvPr></p:nvSpPr>'
    return f"<p:sp>{placeholder}<p:txBody>{paragraphs}</p:txBody></p:sp>"


def build_epub(chapters: Sequence[str], *, title: str = "", encrypted: bool = False) -> bytes:
    """A book with chapters in XHTML."""
    items = "".join(
        f'<item id="c{n}" href="c%20{n}.xhtml" media-type="application/xhtml+xml"/>'
        for n in range(len(chapters))
    )
    spine = "".join(f'<itemref idref="c{n}"/>' for n in range(len(chapters)))
    entries = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": "<container><rootfiles>"
        '<rootfile full-path="OEBPS/book.opf"/></rootfiles></container>',
        "OEBPS/book.opf": '<package xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata>'
        f"<dc:title>{escape(title)}</dc:title><dc:date>2024-05-06</dc:date></metadata>"
        f"<manifest>{items}</manifest><spine>{spine}</spine></package>",
    }
    for n, chapter in enumerate(chapters):
        entries[f"OEBPS/c {n}.xhtml"] = f"<html><body>{chapter}</body></html>"
    if encrypted:
        entries["META-INF/encryption.xml"] = (
            '<encryption><CipherReference URI="OEBPS/c%200.xhtml"/></encryption>'
        )
    return build_zip(entries)


def _content_types(types: Mapping[str, str]) -> str:
    overrides = "".join(
        f'<Override PartName="{name}" ContentType="{kind}"/>' for name, kind in types.items()
    )
    return (
        f'<Types xmlns="{_PACKAGE}/content-types"><Default Extension="rels" '
        f'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f"{overrides}</Types>"
    )


def _relationships(targets: Mapping[str, tuple[str, str]]) -> str:
    items = "".join(
        f'<Relationship Id="{id_}" Type="{_OFFICE}/{kind}" Target="{target}"/>'
        for id_, (kind, target) in targets.items()
    )
    return f'<Relationships xmlns="{_PACKAGE}/relationships">{items}</Relationships>'
