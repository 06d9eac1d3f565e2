"""Usage exports of providers: what cannot be read. The audit's tests compare valid ones."""

from pathlib import Path

import pytest

from service.core.accounting.provider_export import read_export
from service.core.errors import KotaeError


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "no column date"),
        (b"date,input_tokens,output_tokens\n", "no column model"),
        (b"date,model,input_tokens,cost\n", "no column output_tokens or completion_tokens"),
        (b"date,model,input_tokens,output_tokens\nyesterday,m,1,1\n", "line 2"),
        (b"date,model,input_tokens,output_tokens\n2026-03-01,m,many,1\n", "line 2"),
        (b"date,model,input_tokens,output_tokens\n2026-03-01,m,-1,1\n", "line 2"),
        (b"date,model,input_tokens,output_tokens\n2026-03-01\n", "line 2"),
        (b"date,model\xff,input_tokens\n", "not CSV in UTF-8"),
    ],
)
def test_unreadable_exports_are_rejected(tmp_path: Path, content: bytes, expected: str) -> None:
    """The error names the column or the line."""
    file = tmp_path / "usage.csv"
    file.write_bytes(content)
    with pytest.raises(KotaeError, match=expected):
        read_export(file)
