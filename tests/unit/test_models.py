"""Models of pydantic and classes of attrs as arguments and results."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import attrs
import pytest
from pydantic import AnyUrl, BaseModel, ConfigDict, Field, RootModel, SecretStr

from taskq import PayloadError
from taskq.protocol.codec import CallCaster, decode_call, decode_result, encode_call, encode_result

ID = os.urandom(16)


class Color(Enum):
    RED = "red"


class Item(BaseModel):
    name: str
    price: Decimal = Field(gt=0)


class Order(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: UUID = UUID(int=7)
    at: datetime = datetime(2026, 1, 2, tzinfo=UTC)
    items: list[Item] = []
    color: Color = Color.RED
    site: AnyUrl = AnyUrl("https://example.org/a")
    data: bytes = b"\xff\x00"
    customer_name: str = Field("Ada", alias="customerName")
    parent: Order | None = None


class Names(RootModel[list[str]]):
    pass


class Locked(BaseModel):
    password: SecretStr


@attrs.define
class Point:
    x: int = attrs.field(validator=attrs.validators.instance_of(int))
    _y: int = 0
    color: Color = Color.RED


@attrs.frozen
class Line:
    points: list[Point]
    label: str | None = None


ORDER = Order(items=[Item(name="tea", price=Decimal("2.50"))], customerName="Bob", parent=Order())


def travelled(function: Any, *args: Any) -> Any:
    """The arguments of a call as they reach its function."""
    got, kwargs = decode_call(ID, encode_call(ID, args, {}))
    return CallCaster(function).cast(got, kwargs)[0]


def take(one: Order, many: list[Order], maybe: Order | None, by_name: dict[str, Names], either: Point | Line) -> Order:
    return one


def test_models_arrive_as_they_were() -> None:
    sent = (ORDER, [ORDER, Order()], None, {"a": Names(["b"])}, Line([Point(1, 2)], "here"))
    assert travelled(take, *sent) == list(sent)
    assert travelled(take, *sent[:2], ORDER, {}, Point(4))[2:] == [ORDER, {}, Point(4)]


def test_results_are_models_again() -> None:
    of_result = CallCaster(take).return_caster
    assert of_result is not None
    assert of_result(decode_result(ID, encode_result(ID, ORDER))) == ORDER


def test_without_an_annotation_they_are_plain() -> None:
    def plain(line: Any) -> None: ...

    assert travelled(plain, Line([Point(1)])) == [{"points": [{"x": 1, "_y": 0, "color": "red"}], "label": None}]


@pytest.mark.parametrize("name", ["customer_name", "customerName"])
def test_fields_may_come_by_name_or_alias(name: str) -> None:
    assert travelled(take, {name: "Eve"})[0].customer_name == "Eve"


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (
            ({"items": [{"name": "tea", "price": -12345}]},),
            "argument 'one': Order: items.0.price: Input should be greater",
        ),
        (({"unknown": 1},), "argument 'one': Order: unknown: Extra inputs are not permitted"),
        ((ORDER, [{"data": 4}]), "argument 'many': Order: data: Input should be a valid bytes"),
        ((ORDER, [], {"parent": {"id": "x"}}), "argument 'maybe': Order: parent.id: Input should be a valid UUID"),
        ((ORDER, [], None, {}, {"points": [{"x": "no"}]}), "argument 'either'"),
        ((ORDER, [], None, {}, 4), "argument 'either': an int fits none"),
    ],
)
def test_errors_name_the_field_and_no_value(args: tuple[Any, ...], told: str) -> None:
    with pytest.raises(TypeError) as raised:
        travelled(take, *args)
    assert told in str(raised.value)
    assert "12345" not in str(raised.value)


def test_attrs_validates() -> None:
    def take_points(points: list[Point]) -> None: ...

    with pytest.raises(TypeError, match=r"argument 'points': .*'x' must be"):
        travelled(take_points, [{"x": "no"}])
    with pytest.raises(TypeError, match=r"argument 'points': Point has no field 'z'"):
        travelled(take_points, [{"z": 1}])
    with pytest.raises(TypeError, match=r"argument 'points': .*missing.*'x'"):
        travelled(take_points, [{}])


def test_what_cannot_be_stored_is_named() -> None:
    with pytest.raises(PayloadError, match=r"args\[0\]\.password: .*SecretStr .*secrets are not stored"):
        encode_call(ID, (Locked(password=SecretStr("x")),), {})
    with pytest.raises(PayloadError, match=r"args\[0\]\.points\[0\]"):
        encode_call(ID, (Line([object()]),), {})  # type: ignore[list-item]
