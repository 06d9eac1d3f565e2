"""Quota subjects: their names are built in one module."""

import ast

from service.core.ports import (
    KEY_PREFIX,
    USER_PREFIX,
    QuotaLimits,
    QuotaSubject,
    list_subject_names,
)
from tests.sources import parse_service


def test_names_of_rows_and_of_subjects_are_the_same() -> None:
    """Holds and charges use the same name."""
    limits = QuotaLimits(concurrent=1)
    user, key = QuotaSubject.for_user("alice", limits), QuotaSubject.for_key("k", limits)

    assert [user.name, key.name] == list_subject_names("alice", "k") == ["user:alice", "key:k"]
    assert (user.of, key.of, user.limits, key.limits) == ("user", "key", limits, limits)


def test_a_row_without_a_key_is_charged_to_its_user() -> None:
    """Without a key there is one subject."""
    assert list_subject_names("alice", None) == ["user:alice"]


def test_prefixes_are_written_in_one_module() -> None:
    """No other module of the service contains the prefix of a subject."""
    containing = {
        module
        for module, tree in parse_service().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in {USER_PREFIX, KEY_PREFIX}
    }

    assert containing == {"core/ports.py"}
