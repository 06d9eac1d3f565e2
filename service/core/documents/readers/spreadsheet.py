"""Reads spreadsheets (XLSX, XLSM, XLSB, XLS, ODS) with calamine: a section per sheet."""

import io

import python_calamine as calamine

from service.core.documents.readers.archive import Archive
from service.core.documents.readers.docx import read_core_properties
from service.core.documents.readers.extracted import (
    Extracted,
    Format,
    TextBuilder,
    clean_title,
    format_rows,
    parse_date,
)
from service.core.errors import FileUnreadable


def read_spreadsheet(data: bytes, bytes_max: int) -> Extracted:
    """Read all sheets. Raises `FileUnreadable`, `TooLarge`."""
    title = date = ""
    if data.startswith(b"PK"):
        archive = Archive(data)
        archive.check_parts()
        title, date = read_core_properties(archive)
    builder = TextBuilder(bytes_max)
    try:
        workbook = calamine.CalamineWorkbook.from_filelike(io.BytesIO(data))
        for name in workbook.sheet_names:
            _add_sheet(builder, workbook.get_sheet_by_name(name))
    except calamine.PasswordError as error:
        raise FileUnreadable("the spreadsheet is encrypted; save it without a password") from error
    except calamine.CalamineError as error:
        raise FileUnreadable("the spreadsheet is damaged or incomplete") from error
    return Extracted(
        text=builder.build(),
        format=Format.SPREADSHEET,
        title=clean_title(title),
        date=parse_date(date),
    )


def _add_sheet(builder: TextBuilder, sheet: calamine.CalamineSheet) -> None:
    heading = f"## {sheet.name}\n\n"
    for row in format_rows(sheet.iter_rows()):
        builder.add(heading + row)
        heading = ""
    builder.add("\n")
