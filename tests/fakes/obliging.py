"""A model that does what requests ask for: it calls their functions and follows their schemas.

    fake.choose = oblige

Values are made from the schema; numbers and quoted strings are taken from the prompt.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from tests.fakes.behaviour import Behaviour, read_prompt

# What clients ask for in the mode `json_object`, which has no schema.
OBJECT = {"setup": "Why?", "punchline": "Because."}


def oblige(body: Any) -> Behaviour | None:
    """Return the behaviour that a request asks for; None: an ordinary text."""
    prompt = read_prompt(body)
    choice = body.get("tool_choice", "auto")
    if body["messages"][-1]["role"] != "tool" and choice != "none":
        named = choice["function"]["name"] if isinstance(choice, dict) else None
        for tool in body.get("tools") or ():
            function = tool["function"]
            if named in {None, function["name"]}:
                arguments = build_value(function.get("parameters") or {}, prompt)
                return Behaviour(tool_calls=[(function["name"], arguments)])
    response_format = body.get("response_format") or {}
    if response_format.get("type") == "json_object":
        return Behaviour(text=json.dumps(OBJECT))
    if response_format.get("type") == "json_schema":
        value = build_value(response_format["json_schema"]["schema"], prompt)
        return Behaviour(text=json.dumps(value))
    return None


def build_value(  # noqa: PLR0911 - one for each type
    schema: Mapping[str, Any], prompt: str, root: Mapping[str, Any] | None = None
) -> Any:
    """Return a value that a JSON Schema allows."""
    root = schema if root is None else root
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return build_value(schema[several][0], prompt, root)
    match "enum" if "enum" in schema else schema.get("type", "object"):
        case "enum":
            return schema["enum"][0]
        case "integer" | "number":
            found = re.search(r"\d+", prompt)
            return int(found[0]) if found else 1
        case "array":
            return [build_value(schema.get("items", {}), prompt, root)]
        case "string":
            quoted = re.search("'([^']+)'", prompt)
            return quoted[1] if quoted else "Paris"
        case "boolean" | "null" as kind:
            return True if kind == "boolean" else None
    properties = schema.get("properties") or {}
    return {name: build_value(value, prompt, root) for name, value in properties.items()}
