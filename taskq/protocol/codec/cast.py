"""Casters: they convert decoded values to what annotations declare."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
import typing
from collections import OrderedDict, abc, defaultdict
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, Literal, Union

from taskq.protocol.codec.format import named, shown_key
from taskq.protocol.codec.models import is_attrs, is_pydantic, is_root_model, to_attrs, to_pydantic

Caster = Callable[[Any], Any]
#: The types as which a list, tuple, set or frozenset may be declared.
_COLLECTIONS = (list, tuple, set, frozenset)
_COLLECTION_HINTS = frozenset({
    *(list, set, frozenset, abc.Sequence, abc.MutableSequence, abc.Set, abc.MutableSet),
    *(abc.Collection, abc.Iterable, abc.Container, abc.Reversible),
})  # fmt: skip
_MAPPING_HINTS = frozenset({dict, OrderedDict, defaultdict, abc.Mapping, abc.MutableMapping})


def caster(hint: Any) -> Caster | None:
    """Makes the function that converts a decoded value to what an annotation declares.

    It converts Enum members, dataclasses, namedtuples, models of pydantic and classes of attrs, also inside Optional,
    Union, list, tuple, dict, set, frozenset, Sequence, Mapping and the like, Annotated, NewType, Literal, and the
    fields of dataclasses. It leaves all other values as they arrived, and also None and values that do not have the
    declared shape (a None for a ``list[Color]``).

    In a Union, a dict with exactly the fields of a dataclass becomes that dataclass. If there is none, a value that is
    an instance of a plain alternative stays (a str for ``Color | str``). If it is not, the first alternative that can
    take it does.

    Args:
        hint: a resolved annotation, as typing.get_type_hints returns it.

    Returns:
        The function, or None if there is nothing to convert. It raises ValueError, TypeError, or whatever the user's
        class raises if a value cannot be converted.
    """
    return _caster(hint, ())


def _caster(hint: Any, aliases: tuple[Any, ...]) -> Caster | None:
    if isinstance(hint, type) and typing.get_origin(hint) is None:
        return _class_caster(hint)
    # Of a NewType, and of `type X = ...`.
    below = getattr(hint, "__supertype__", None) or getattr(hint, "__value__", None)
    if below is not None:
        # A recursive alias (type Tree = list[Tree] | Color) is followed once; deeper values stay plain.
        return None if hint in aliases else _caster(below, (*aliases, hint))
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated or origin is typing.Final:
        return _caster(args[0], aliases)
    if origin is Union or origin is types.UnionType:
        return _union_caster(args, aliases)
    if origin is Literal:
        return _literal_caster(args)
    if origin is tuple:
        return _tuple_caster(args, aliases)
    if origin in _COLLECTION_HINTS and len(args) == 1:
        return _items_caster(_caster(args[0], aliases))
    if origin in _MAPPING_HINTS and len(args) == 2:
        return _mapping_caster(_caster(args[0], aliases), _caster(args[1], aliases))
    return _class_caster(origin) if isinstance(origin, type) else None  # a generic dataclass


def _class_caster(cls: type) -> Caster | None:
    if issubclass(cls, Enum):
        return _enum_caster(cls)
    if dataclasses.is_dataclass(cls):
        return functools.partial(_to_dataclass, cls)
    if is_pydantic(cls):
        return functools.partial(to_pydantic, cls)
    if is_attrs(cls):
        return functools.partial(_to_attrs, cls)
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        return functools.partial(_to_namedtuple, cls)
    return None


def _enum_caster(cls: type[Enum]) -> Caster:
    # A member's value may itself be a dataclass or the like, which arrived as its fields.
    of_values = [made for kind in {type(member._value_) for member in cls} if (made := _class_caster(kind))]

    def cast(value: Any) -> Any:
        try:
            return cls(value)
        except ValueError:
            if value is None:
                return None
            for of_value in of_values:
                try:
                    return cls(of_value(value))
                except (ValueError, TypeError):
                    pass
            # not the error of `cls`, which repeats the argument: arguments must not get into the log
            raise TypeError(f"{named(type(value))} that is not a value of {cls.__qualname__}") from None

    return cast


@functools.lru_cache(maxsize=1024)
def _field_casters(cls: type) -> dict[str, Caster | None]:
    """The casters of a class' annotations; none if one cannot be resolved. Made on demand, since classes may be
    recursive."""
    try:
        return {name: _caster(hint, ()) for name, hint in typing.get_type_hints(cls).items()}
    except Exception:  # whatever the user's annotations raise
        return {}


def _to_dataclass(cls: type, value: Any) -> Any:
    if value is None or isinstance(value, cls):
        return value
    if not isinstance(value, dict):
        raise TypeError(f"{cls.__name__} cannot be made of {named(type(value))}")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = [name for name in value if name not in fields]
    if unknown:
        raise TypeError(f"{cls.__name__} has no field {shown_key(unknown[0])}")
    casters = _field_casters(cls)
    cast = {name: item if (of := casters.get(name)) is None else of(item) for name, item in value.items()}
    made = cls(**{name: item for name, item in cast.items() if fields[name].init})
    for name, item in cast.items():
        if not fields[name].init:
            object.__setattr__(made, name, item)  # frozen ones too
    return made


def _to_attrs(cls: Any, value: Any) -> Any:
    return to_attrs(cls, _field_casters(cls), value)  # the casters are made on demand: classes may be recursive


def _to_namedtuple(cls: Any, value: Any) -> Any:
    if type(value) is not tuple or len(value) != len(cls._fields):
        return value
    casters = _field_casters(cls)
    pairs = zip(cls._fields, value, strict=True)
    return cls._make(item if (of := casters.get(name)) is None else of(item) for name, item in pairs)


def _literal_caster(choices: tuple[Any, ...]) -> Caster | None:
    members = [choice for choice in choices if isinstance(choice, Enum)]
    if not members:
        return None

    def cast(value: Any) -> Any:
        if any(type(value) is type(choice) and value == choice for choice in choices):
            return value
        return next((member for member in members if member._value_ == value), value)

    return cast


def _items_caster(of_item: Caster | None) -> Caster | None:
    if of_item is None:
        return None

    def cast(value: Any) -> Any:
        return type(value)(map(of_item, value)) if type(value) in _COLLECTIONS else value

    return cast


def _tuple_caster(hints: tuple[Any, ...], aliases: tuple[Any, ...]) -> Caster | None:
    if len(hints) == 2 and hints[1] is Ellipsis:
        return _items_caster(_caster(hints[0], aliases))
    casters = [_caster(hint, aliases) for hint in hints]
    if not any(casters):
        return None

    def cast(value: Any) -> Any:
        if type(value) not in (tuple, list) or len(value) != len(casters):
            return value
        pairs = zip(casters, value, strict=True)
        return type(value)([item if of is None else of(item) for of, item in pairs])

    return cast


def _mapping_caster(of_key: Caster | None, of_value: Caster | None) -> Caster | None:
    if of_key is None and of_value is None:
        return None

    def cast(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            key if of_key is None else of_key(key): item if of_value is None else of_value(item)
            for key, item in value.items()
        }

    return cast


class _UnionCaster:
    """Converts to one of several alternatives, in the order that `caster` describes."""

    def __init__(self, hints: Iterable[Any], aliases: tuple[Any, ...]) -> None:
        plain: set[type] = set()
        #: The class that a value must be an instance of for each alternative, and the caster of that.
        self._casters: list[tuple[tuple[type, ...], Caster]] = []
        self._exact: list[tuple[set[str], Caster]] = []
        for hint in hints:
            made = _caster(hint, aliases)
            cls = typing.get_origin(hint) or hint
            if made is None:
                plain.add(cls if isinstance(cls, type) else object)
                continue
            self._casters.append((_shape(cls), made))
            if isinstance(cls, type) and dataclasses.is_dataclass(cls):
                self._exact.append(({field.name for field in dataclasses.fields(cls)}, made))
        if float in plain:
            plain.add(int)  # as type checkers have it
        self._plain = tuple(plain)

    def __bool__(self) -> bool:
        return bool(self._casters)

    def __call__(self, value: Any) -> Any:
        if value is None:
            return None
        fitting = [made for shape, made in self._casters if isinstance(value, shape)]
        if isinstance(value, dict):
            fitting = [made for names, made in self._exact if value.keys() == names] + (
                [] if isinstance(value, self._plain) else fitting
            )
        elif isinstance(value, self._plain):
            return value
        for made in fitting:
            try:
                return made(value)
            except Exception:  # the user's class may raise anything; the next alternative may take the value
                if len(self._casters) == 1 and not isinstance(value, self._plain):
                    raise  # it says what is wrong
        if isinstance(value, self._plain):
            return value
        raise TypeError(f"{named(type(value))} fits none of the declared alternatives")


def _union_caster(hints: tuple[Any, ...], aliases: tuple[Any, ...]) -> Caster | None:
    union = _UnionCaster(hints, aliases)
    return union if union else None


def _shape(cls: Any) -> tuple[type, ...]:
    """The type that arrives for an alternative that is converted."""
    if cls in _MAPPING_HINTS:
        return (dict,)
    if cls in (list, set, frozenset):
        return (cls,)
    if cls in _COLLECTION_HINTS:
        return _COLLECTIONS
    if isinstance(cls, type) and issubclass(cls, tuple):
        return (tuple,)
    if isinstance(cls, type) and dataclasses.is_dataclass(cls) and not issubclass(cls, Enum):
        return (dict, cls)
    if isinstance(cls, type) and (is_attrs(cls) or (is_pydantic(cls) and not is_root_model(cls))):
        return (dict, cls)
    return (object,)


class CallCaster:
    """Converts the arguments of a function to what its annotations declare.

    If an annotation cannot be resolved (typing.get_type_hints raises), nothing is converted.

    Attributes:
        return_caster: the caster of the return annotation, or None.
    """

    __slots__ = ("_by_name", "_by_position", "_other_names", "_other_positions", "converts", "return_caster")

    def __init__(self, function: Callable[..., Any]) -> None:
        """Reads the signature.

        Args:
            function: any callable.
        """
        casters, parameters = _signature(function)
        self.return_caster = casters.pop("return", None)
        self._by_position: list[tuple[str, Caster | None]] = []
        self._by_name: dict[str, Caster | None] = {}
        self._other_positions: tuple[str, Caster | None] = ("*", None)
        self._other_names: Caster | None = None
        for parameter in parameters:
            name, kind, made = parameter.name, parameter.kind, casters.get(parameter.name)
            if kind is parameter.VAR_POSITIONAL:
                self._other_positions = (f"*{name}", made)
            elif kind is parameter.VAR_KEYWORD:
                self._other_names = made
            else:
                if kind is not parameter.KEYWORD_ONLY:
                    self._by_position.append((name, made))
                if kind is not parameter.POSITIONAL_ONLY:
                    self._by_name[name] = made
        self.converts = any(casters.get(parameter.name) is not None for parameter in parameters)

    def cast(self, args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Converts the arguments that need it.

        Args:
            args: the positional arguments, as `decode_call` returned them.
            kwargs: the keyword arguments.

        Returns:
            Both: new objects if any parameter of the function can be converted, and the same objects otherwise.

        Raises:
            TypeError: an argument cannot be converted; the message names its parameter.
        """
        if not self.converts:
            return args, kwargs
        surplus = len(args) - len(self._by_position)
        positions = self._by_position + [self._other_positions] * surplus
        cast = [_cast_one(name, made, item) for (name, made), item in zip(positions, args, strict=False)]
        by_name, other = self._by_name, self._other_names
        return cast, {name: _cast_one(name, by_name.get(name, other), item) for name, item in kwargs.items()}


def _signature(function: Callable[..., Any]) -> tuple[dict[str, Caster | None], list[inspect.Parameter]]:
    """The casters of a function's annotations by name, and its parameters; neither if either is unknown."""
    try:
        hints = typing.get_type_hints(inspect.unwrap(function))
        parameters = list(inspect.signature(function).parameters.values())
        return {name: _caster(hint, ()) for name, hint in hints.items()}, parameters
    except Exception:  # whatever the user's annotations raise
        return {}, []


def _cast_one(name: str, made: Caster | None, value: Any) -> Any:
    if made is None:
        return value
    try:
        return made(value)
    except Exception as error:
        raise TypeError(f"argument {name!r}: {error}") from error
