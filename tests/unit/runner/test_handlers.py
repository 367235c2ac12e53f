"""What a signature says, and what input it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel, JsonValue

from penstock.contracts.errors import RejectedError
from penstock.runner import StepContext
from penstock.runner.handlers import Handler


def arguments_of(handler: Handler, value: JsonValue) -> tuple[tuple[Any, ...], Any]:
    context: Any = object()
    positional, named = handler.arguments(context, "tool", value)
    return tuple(item for item in positional if item is not context), dict(named)


class Place(BaseModel):
    city: str
    zip: int = 0


@dataclass
class Point:
    x: float
    y: float


def test_parameters_become_a_closed_schema() -> None:
    async def forecast(ctx: StepContext, city: str, days: int = 3) -> None:
        """Say how it will be.

        At length.
        """

    handler = Handler("forecast", forecast)
    assert handler.is_async
    assert handler.capability.description == "Say how it will be."
    assert handler.capability.parameters == {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer", "default": 3},
        },
        "required": ["city"],
        "additionalProperties": False,
    }
    assert arguments_of(handler, {"city": "Ulm"}) == ((), {"city": "Ulm", "days": 3})
    assert arguments_of(handler, {"city": "Ulm", "days": 1}) == ((), {"city": "Ulm", "days": 1})


@pytest.mark.parametrize("name", ["json", "copy", "schema", "model_config", "_private", "self_"])
def test_parameter_may_have_any_name(name: str) -> None:
    space: dict[str, Any] = {}
    exec(f"def handle({name}: str): ...", space)
    handler = Handler("any", space["handle"])
    assert arguments_of(handler, {name: "x"}) == ((), {name: "x"})


def test_one_model_takes_the_whole_input() -> None:
    async def move(place: Place) -> None: ...

    handler = Handler("move", move)
    assert arguments_of(handler, {"city": "Ulm"}) == ((Place(city="Ulm"),), {})
    assert handler.capability.parameters["required"] == ["city"]


def test_one_dataclass_takes_the_whole_input() -> None:
    def draw(ctx: StepContext, point: Point) -> None: ...

    handler = Handler("draw", draw)
    assert not handler.is_async
    assert arguments_of(handler, {"x": 1, "y": 2})[0] == (Point(1.0, 2.0),)


def test_two_models_are_two_arguments() -> None:
    async def travel(start: Place, end: Place) -> None: ...

    handler = Handler("travel", travel)
    _, named = arguments_of(handler, {"start": {"city": "a"}, "end": {"city": "b"}})
    assert named == {"start": Place(city="a"), "end": Place(city="b")}


def test_keywords_take_everything() -> None:
    async def echo(**arguments: JsonValue) -> None: ...

    handler = Handler("echo", echo)
    assert handler.capability.parameters == {"type": "object"}
    assert arguments_of(handler, {"a": 1, "b": None}) == ((), {"a": 1, "b": None})
    assert arguments_of(handler, None) == ((), {})
    with pytest.raises(RejectedError):
        arguments_of(handler, [1])


def test_keywords_beside_parameters_take_the_rest() -> None:
    async def log(level: int, **rest: JsonValue) -> None: ...

    handler = Handler("log", log)
    assert arguments_of(handler, {"level": 1, "text": "x"}) == ((), {"level": 1, "text": "x"})


def test_wrong_input_is_rejected_with_every_path() -> None:
    async def travel(start: Place, days: int) -> None: ...

    handler = Handler("travel", travel)
    with pytest.raises(RejectedError) as caught:
        arguments_of(handler, {"start": {"zip": "x"}, "days": [], "more": 1})
    assert caught.value.code == "invalid_arguments"
    assert {detail.path for detail in caught.value.details} == {
        "start.city",
        "start.zip",
        "days",
        "more",
    }


def test_open_handler_ignores_what_it_does_not_know() -> None:
    async def talk(messages: list[str]) -> None: ...

    handler = Handler("talk", talk, closed=False)
    assert arguments_of(handler, {"messages": [], "new": 1}) == ((), {"messages": []})


def test_defaults_are_not_shared_between_calls() -> None:
    async def collect(items: list[int] = []) -> None: ...  # noqa: B006 - what is tested

    handler = Handler("collect", collect)
    _, first = arguments_of(handler, {})
    first["items"].append(1)
    assert arguments_of(handler, {})[1] == {"items": []}


def test_catch_all_takes_any_json() -> None:
    async def anything(ctx: StepContext, value: JsonValue) -> None: ...

    handler = Handler("step", anything, closed=False, whole=True)
    assert arguments_of(handler, [1, {"a": None}]) == (([1, {"a": None}],), {})


def test_own_schema_and_description_are_advertised_instead() -> None:
    async def run(x: int) -> None: ...

    handler = Handler("run", run, description="Runs.", parameters={"type": "object", "x-a": 1})
    assert handler.capability.description == "Runs."
    assert handler.capability.parameters == {"type": "object", "x-a": 1}


def test_parameter_without_a_name_is_refused() -> None:
    async def bad(a: int, /) -> None: ...

    with pytest.raises(TypeError, match="'a'"):
        Handler("bad", bad)
