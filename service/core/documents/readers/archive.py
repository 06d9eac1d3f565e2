"""Zip archives within limits, and their XML parts.

Sizes are taken from the directory of the archive. `zipfile` reads no more of an entry than its
directory declares, and checks the CRC. The standard XML parser loads no external entities, and
expat limits the expansion of internal ones.
"""

import io
import lzma
import struct
import zipfile
import zlib
from typing import BinaryIO
from xml.etree import ElementTree as ET

from service.core.errors import FileUnreadable, TooLarge

ENTRIES_MAX = 10_000
EXPANDED_BYTES_MAX = 300_000_000  # of all entries
PART_BYTES_MAX = 50_000_000  # of an entry that is parsed
RATIO_MAX = 250  # of an entry of more than `RATIO_BYTES_MIN`
RATIO_BYTES_MIN = 1_000_000

_READ_ERRORS = (
    zipfile.BadZipFile,
    NotImplementedError,  # an unknown compression
    RuntimeError,  # encrypted
    EOFError,
    OSError,
    ValueError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
)


class Archive:
    """A zip archive. Raises `FileUnreadable`, `TooLarge`."""

    def __init__(self, file: bytes | BinaryIO) -> None:
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(file) if isinstance(file, bytes) else file)
        except (zipfile.BadZipFile, ValueError, OSError, struct.error) as error:
            raise FileUnreadable("the file is damaged or incomplete") from error
        self.entries = entries = self._zip.infolist()
        if len(entries) > ENTRIES_MAX:
            raise TooLarge(f"the archive has {len(entries)} entries, more than {ENTRIES_MAX}")
        if sum(entry.file_size for entry in entries) > EXPANDED_BYTES_MAX:
            raise TooLarge(f"the archive expands to more than {EXPANDED_BYTES_MAX} bytes")
        for entry in entries:
            _check_entry(entry)
        self.names = frozenset(entry.filename for entry in entries)

    def read(self, name: str) -> bytes:
        """The content of an entry."""
        try:
            return self.read_entry(self._zip.getinfo(name))
        except KeyError as error:
            raise FileUnreadable(f"the file is damaged: `{name}` is missing") from error

    def read_entry(self, entry: zipfile.ZipInfo) -> bytes:
        """The content of an entry, of which several may have the same name."""
        if entry.file_size > PART_BYTES_MAX:
            raise TooLarge(f"a part of the file is larger than {PART_BYTES_MAX} bytes")
        try:
            return self._zip.read(entry)
        except _READ_ERRORS as error:
            raise FileUnreadable("the file is damaged or incomplete") from error

    def open_entry(self, entry: zipfile.ZipInfo) -> BinaryIO:
        """The content of an entry as a file in memory."""
        return io.BytesIO(self.read_entry(entry))

    def parse_xml(self, name: str) -> ET.Element:
        """The root element of an entry."""
        try:
            return ET.fromstring(self.read(name))  # noqa: S314 - see above
        except ET.ParseError as error:
            raise FileUnreadable("the file is damaged: a part is not well-formed XML") from error

    def check_parts(self) -> None:
        """Read all XML parts, for libraries that do not limit what they read themselves."""
        for name in self.names:
            if name.endswith((".xml", ".rels", ".bin")):
                self.read(name)


def _check_entry(entry: zipfile.ZipInfo) -> None:
    if entry.flag_bits & 1:
        raise FileUnreadable("the file is encrypted; save it without a password")
    if entry.file_size > RATIO_BYTES_MIN and entry.file_size > RATIO_MAX * entry.compress_size:
        raise TooLarge(f"a part of the file expands to more than {RATIO_MAX} times its size")
