"""A reader of the JSON Schemas that taskq prints: says where a value does not fit. Knows the words that they use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_CLASSES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}
_WORDS = {
    *("$schema", "$defs", "$ref", "description", "type", "enum", "anyOf"),
    *("items", "properties", "required", "additionalProperties"),
}


def misfits(value: Any, schema: dict[str, Any], *, may_have_more: bool = False) -> list[str]:
    """What is wrong with a value; nothing, if it fits.

    Args:
        may_have_more: objects may have properties that the schema does not name.
    """
    return list(_misfits(value, schema, schema.get("$defs", {}), "it", may_have_more))


def _misfits(value: Any, schema: dict[str, Any], definitions: dict[str, Any], place: str, more: bool) -> Iterator[str]:
    assert set(schema) <= _WORDS, schema
    if "$ref" in schema:
        yield from _misfits(value, definitions[schema["$ref"].removeprefix("#/$defs/")], definitions, place, more)
    if "enum" in schema and value not in schema["enum"]:
        yield f"{place} is {value!r}, not one of {schema['enum']}"
    if "anyOf" in schema and all(any(_misfits(value, each, definitions, place, more)) for each in schema["anyOf"]):
        yield f"{place} is {value!r}, which none of {schema['anyOf']} allows"
    name = schema.get("type")
    if name is not None and (
        not isinstance(value, _CLASSES[name]) or (isinstance(value, bool) and name in ("integer", "number"))
    ):
        yield f"{place} is {value!r}, not a {name}"
        return
    if name == "array":
        for number, item in enumerate(value):
            yield from _misfits(item, schema["items"], definitions, f"{place}[{number}]", more)
    if name == "object":
        properties = schema.get("properties", {})
        yield from (f"{place} has no {key}" for key in schema.get("required", ()) if key not in value)
        for key, item in value.items():
            below = properties.get(key, schema.get("additionalProperties"))
            if below is not None:
                yield from _misfits(item, below, definitions, f"{place}.{key}", more)
            elif not more:
                yield f"{place} has {key}, of which nothing is told"
