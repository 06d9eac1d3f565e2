"""The OpenAPI document."""

import json
import re

from service.core.settings import Settings
from service.main import create_app


def test_every_route_documents_its_errors() -> None:
    """Each operation documents its problems, and every reference in the document resolves."""
    document = create_app(Settings()).openapi()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if path.startswith("/ai") or path == "/seed":
                assert {"401", "413", "422", "500", "503"} <= operation["responses"].keys(), path
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert references <= document["components"]["schemas"].keys()
