"""The syntax trees of the modules of service/, parsed once for all tests that examine them."""

import ast
from functools import cache
from pathlib import Path

import service

SERVICE = Path(service.__file__).parent


@cache
def parse_service() -> dict[str, ast.Module]:
    """Return the syntax tree of each module by its path below service/."""
    return {
        file.relative_to(SERVICE).as_posix(): ast.parse(file.read_text())
        for file in sorted(SERVICE.rglob("*.py"))
    }
