"""Models of pydantic and classes of attrs as their fields, and back. Neither library is imported here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: What a field of a model is converted by; None leaves it as it is.
FieldCaster = Callable[[Any], Any] | None
#: What a model holds and msgpack does not know: addresses, which a model makes of texts again.
_URL_MODULE = "pydantic.networks"


def is_pydantic(cls: type) -> bool:
    """Whether a class is a model of pydantic (2 or later)."""
    return hasattr(cls, "__pydantic_validator__") and hasattr(cls, "model_validate")


def is_attrs(cls: type) -> bool:
    """Whether a class was made by attrs."""
    return hasattr(cls, "__attrs_attrs__")


def is_root_model(cls: type) -> bool:
    """Whether it is a model of pydantic that has no fields, but one value."""
    return bool(getattr(cls, "__pydantic_root_model__", False))


def dumped(model: Any) -> Any:
    """What a model of pydantic holds, as plain values: its fields by name, or the value of a root model."""
    return _without_urls(model.model_dump(round_trip=True))


def fields_of_attrs(value: Any) -> dict[str, Any]:
    """The fields of an instance of an attrs class, by name."""
    return {each.name: getattr(value, each.name) for each in type(value).__attrs_attrs__}


def _without_urls(value: Any) -> Any:
    """What a model holds, with texts in place of URLs."""
    kind = type(value)
    if kind is dict:
        return {key: _without_urls(item) for key, item in value.items()}
    if kind in (list, tuple):
        return kind(map(_without_urls, value))
    return str(value) if kind.__module__ == _URL_MODULE else value


def to_pydantic(cls: Any, value: Any) -> Any:
    """Makes a model of what arrived, by the names or the aliases of its fields.

    Raises:
        ValueError: it does not fit; the message names each field, and repeats none of the values.
    """
    if value is None or isinstance(value, cls):
        return value
    try:
        return cls.model_validate(value, by_alias=True, by_name=True)
    except ValueError as error:
        problems: Any = getattr(error, "errors", None)
        if problems is None:
            raise
        told = [_told(problem) for problem in problems(include_url=False, include_input=False)]
        raise ValueError(f"{cls.__name__}: {'; '.join(told)}") from None  # its own text repeats the values


def _told(problem: dict[str, Any]) -> str:
    place = ".".join(map(str, problem["loc"]))
    return f"{place}: {problem['msg']}" if place else str(problem["msg"])


def to_attrs(cls: Any, casters: dict[str, FieldCaster], value: Any) -> Any:
    """Makes an instance of an attrs class of what arrived; its converters and validators run.

    Raises:
        TypeError: a field is missing, or there are more.
        Exception: whatever the validators raise.
    """
    if value is None or isinstance(value, cls):
        return value
    if not isinstance(value, dict):
        raise TypeError(f"{cls.__name__} cannot be made of a {type(value).__name__}")
    fields = {each.name: each for each in cls.__attrs_attrs__}
    unknown = next((name for name in value if name not in fields), None)
    if unknown is not None:
        raise TypeError(f"{cls.__name__} has no field {unknown!r:.100}")
    cast = {name: item if (of := casters.get(name)) is None else of(item) for name, item in value.items()}
    made = cls(**{fields[name].alias: item for name, item in cast.items() if fields[name].init})
    for name, item in cast.items():
        if not fields[name].init:
            object.__setattr__(made, name, item)  # frozen ones too
    return made
