"""The JSON Schema of each configuration file, for editors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from scistream.reference.settings_list import FILES, ConfigurationFile

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema_of(file: ConfigurationFile) -> dict[str, Any]:
    """Return the JSON Schema of a configuration file, with a description of each setting."""
    schema: dict[str, Any] = msgspec.json.schema(file.kind)
    parts: dict[str, Any] = schema["$defs"]
    _describe(parts, schema["$ref"], "", file.comments)
    title = f"{file.name}.toml of SciStream: {file.title}"
    return {"$schema": _DIALECT, "title": title, **schema}


def schema_text(file: ConfigurationFile) -> str:
    """Return the JSON Schema of a configuration file as text."""
    return json.dumps(schema_of(file), indent=2, ensure_ascii=False) + "\n"


def schema_files() -> Iterator[tuple[Path, bytes]]:
    """Yield the name of the file of each schema, and its content."""
    for file in FILES.values():
        yield Path("schemas") / f"{file.name}.schema.json", schema_text(file).encode()


def _describe(parts: dict[str, Any], ref: str, place: str, comments: dict[str, str]) -> None:
    """Add the comments of the example file to the properties of a section, and of the sections in it."""
    part = parts[ref.rpartition("/")[2]]
    part.pop("title", None)
    part.pop("description", None)  # a docstring, for those who read the code
    for name, property_ in part["properties"].items():
        key = f"{place}{name}"
        text = comments.get(key) or comments.get(place.removesuffix("."), "")
        if text:
            property_["description"] = text
        for inner in _refs(property_):
            _describe(parts, inner, f"{key}.", comments)


def _refs(schema: dict[str, Any]) -> list[str]:
    """Return the sections that a property may have."""
    found = [schema["$ref"]] if "$ref" in schema else []
    for inner in [*schema.get("anyOf", ()), *([schema["items"]] if schema.get("items") else [])]:
        found += _refs(inner)
    return found
