"""Lazily imported modules: declarations, types, and the time of the import."""

import ast
import subprocess
import sys
from collections.abc import Iterator

import pytest

from service.core.lazy import MODULES, LazyModule
from tests.sources import parse_service


def test_only_lazy_imports_modules_by_name() -> None:
    """No other file of the service mentions `import_module` or `__import__`."""
    dynamic = {"import_module", "__import__"}
    files = [
        file
        for file, tree in parse_service().items()
        if dynamic
        & {
            getattr(node, "id", getattr(node, "attr", getattr(node, "name", None)))
            for node in ast.walk(tree)
        }
    ]

    assert files == ["core/lazy.py"]


def lazy_declarations() -> Iterator[tuple[str, str, str]]:
    """(file, variable, module) of each `variable = LazyModule(module)` in the service."""
    for file, tree in parse_service().items():
        for node in ast.walk(tree):
            match node:
                case ast.Assign(
                    targets=[ast.Name(id=variable)],
                    value=ast.Call(
                        func=ast.Name(id="LazyModule"), args=[ast.Constant(value=str(module))]
                    ),
                ):
                    yield file, variable, module


def typed_imports(tree: ast.Module) -> dict[str, str]:
    """The modules that a file imports under `if TYPE_CHECKING`, by the name that they get there."""
    imports: dict[str, str] = {}
    for node in tree.body:
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING"), body=body):
                for statement in body:
                    prefix = f"{statement.module}." if isinstance(statement, ast.ImportFrom) else ""
                    assert isinstance(statement, ast.Import | ast.ImportFrom)
                    imports |= {
                        alias.asname or alias.name: prefix + alias.name for alias in statement.names
                    }
    return imports


def test_each_lazy_module_has_the_type_of_the_module_it_loads() -> None:
    """Under `TYPE_CHECKING` the same module is imported by the same name."""
    wrong = [
        (file, variable, module)
        for file, variable, module in lazy_declarations()
        if typed_imports(parse_service()[file]).get(variable) != module
    ]

    assert wrong == []


def test_each_listed_module_is_declared_somewhere() -> None:
    """Every module in `MODULES` is declared with `LazyModule`."""
    assert {module for _, _, module in lazy_declarations()} == set(MODULES)


def test_an_unlisted_module_is_refused() -> None:
    """A lazy module must be in the table."""
    with pytest.raises(ValueError, match="json is not listed"):
        LazyModule("json")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("expression", "imported"),
    [
        ("engine.__name__", False),
        ("getattr(engine, '__wrapped__', None)", False),
        ("engine.SearchEngine", True),
        ("lazy.load_module(engine)", True),
    ],
)
def test_when_a_module_is_imported(expression: str, imported: bool) -> None:
    """At the first access to an attribute or by `load_module`, but not when it is inspected."""
    program = f"""
import sys
from service.core import lazy
engine = lazy.LazyModule("service.core.search.engine")
{expression}
print("service.core.search.engine" in sys.modules)
"""

    assert run(program) == str(imported)


@pytest.mark.slow
def test_no_lazy_module_is_loaded_at_start() -> None:
    """Importing the service and its commands imports none of them, except the commands."""
    program = """
import sys, service.__main__, service.cli.app, service.main, service.server
from service.core.lazy import MODULES
print(*[name for name in MODULES if name in sys.modules])
"""

    assert run(program) == "service.cli.app"


def run(program: str) -> str:
    """Run a program in a new interpreter and return its output."""
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()
