"""Keys: how a caller says which jobs are of one kind, and the text that this makes of the arguments of a call.

`unique=`, `limit_by=` and `ordered_by=` take one each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from taskq.client.options.functions import signature_of
from taskq.model.errors import ConfigError
from taskq.model.limits import MAX_KEY_CHARS
from taskq.protocol.codec import encode_call

#: How a key comes from a call: all arguments, these parameters, a function of the arguments, or a text as it is.
Key = bool | Sequence[str] | Callable[..., Any] | str


def check_key(name: str, key: object, function: Callable[..., Any] | None) -> None:
    """Checks the key in an option.

    Args:
        name: of the option.
        function: of the task, or None if it is not known here.

    Raises:
        ConfigError: no key can be made like this for the task.
    """
    if key is None or key is True or callable(key):
        return
    signature = None if function is None else signature_of(function)
    if isinstance(key, str):
        # a text is one key for all jobs of a task; the name of a parameter is meant as the list of that one
        if signature is not None and key in signature.parameters:
            raise ConfigError(
                f"{name}={key!r} would be one key for all jobs of the task: write {name}=[{key!r}] for one of each "
                f"{key}"
            )
        return
    if not isinstance(key, Sequence) or not key or not all(isinstance(part, str) for part in key):
        raise ConfigError(
            f"{name}={key!r}: use True (all arguments), a list of parameters, a function of the arguments, or a text"
        )
    if function is None:
        return
    if signature is None:
        raise ConfigError(
            f"{name}={key!r}: the parameters of the task are not known: use True (all arguments), a function of the "
            "arguments, or a text"
        )
    known = signature.parameters
    missing = [part for part in key if part not in known]
    if missing:
        raise ConfigError(f"{name}={key!r}: the task has no parameter {missing[0]!r} (it has: {', '.join(known)})")


def key_text(key: Key, function: Callable[..., Any] | None, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """The key of one call, as a text of up to MAX_KEY_CHARS characters.

    Raises:
        ConfigError: no key can be made of these arguments.
    """
    if isinstance(key, str):
        return short_text(key)
    if function is not None and not kwargs and not isinstance(key, bool) and not callable(key):
        positions = _positions(function, tuple(key))
        if positions and len(args) > positions[-1]:
            return _text_of([args[position] for position in positions])
    if callable(key):
        return _text_of([key(*args, **kwargs)])
    signature = None if function is None else _signature(function)
    if signature is None:  # only the name of the task is known here, or it is a builtin without a signature
        if key is True:
            return _text_of([list(args), dict(kwargs)])
        raise ConfigError(
            f"a key of {key!r} needs the task's function, which is not imported here: give the key itself"
        )
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ConfigError(f"these arguments do not fit the task, so there is no key for it: {error}") from None
    bound.apply_defaults()
    if key is True:
        return _text_of([bound.arguments])
    assert not isinstance(key, bool)
    return _text_of([bound.arguments[name] for name in key])


_signature = lru_cache(maxsize=512)(signature_of)


@lru_cache(maxsize=512)
def _positions(function: Callable[..., Any], names: tuple[str, ...]) -> tuple[int, ...]:
    """The positions of some parameters, if they are in order and can be given by position; else nothing. This spares
    most calls the binding, which takes ten times as long as everything else."""
    signature = _signature(function)
    if signature is None:
        return ()
    places = {
        name: place
        for place, (name, parameter) in enumerate(signature.parameters.items())
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    }
    found = tuple(places[name] for name in names if name in places)
    return found if len(found) == len(names) and list(found) == sorted(found) else ()


def _text_of(values: list[Any]) -> str:
    """A short text for some values: the value itself if it is a single text or number, else a digest."""
    if len(values) == 1 and isinstance(values[0], (str, int)):
        return short_text(str(values[0]))
    return _digest(encode_call(bytes(16), values, {}))


def short_text(text: str) -> str:
    """The text itself if it can be a key, else a digest of it."""
    if 1 <= len(text) <= MAX_KEY_CHARS and text.isprintable():
        return text
    return _digest(text.encode("utf-8", "surrogatepass"))


def _digest(data: bytes) -> str:
    from hashlib import sha256  # takes 4 ms to import, which few applications need

    return sha256(data).hexdigest()[:40]
