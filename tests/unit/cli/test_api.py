import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from penstock.cli.api import Api, parse_events
from penstock.cli.failure import CommandError
from penstock.target import Target


def test_call_sends_key_and_returns_json(
    target: Target, gateway: Callable[..., None], requests: list[httpx.Request]
) -> None:
    gateway(lambda _: httpx.Response(200, json={"a": 1}))
    with Api(target) as api:
        assert api.call("GET", "/v1/runs") == {"a": 1}
    assert requests[0].headers["authorization"] == "Bearer pk_test"
    assert str(requests[0].url) == "http://gateway.test/v1/runs"


def test_call_refused_tells_detail_code_and_paths(
    target: Target, gateway: Callable[..., None]
) -> None:
    problem = {
        "title": "Unprocessable Content",
        "status": 422,
        "detail": "2 errors",
        "code": "invalid_document",
        "errors": [{"path": "spec.model", "message": "Field required", "allowed": None}],
    }
    gateway(lambda _: httpx.Response(422, json=problem))
    with Api(target) as api, pytest.raises(CommandError) as caught:
        api.call("POST", "/v1/runs")
    assert caught.value.message == "2 errors [invalid_document]"
    assert caught.value.findings == (("spec.model", "Field required", None),)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b""])
def test_call_refused_without_problem_tells_the_status(
    target: Target, gateway: Callable[..., None], body: bytes
) -> None:
    gateway(lambda _: httpx.Response(502, content=body))
    with Api(target) as api, pytest.raises(CommandError, match="502 Bad Gateway") as caught:
        api.call("GET", "/v1/runs")
    assert caught.value.exit_code == 1


def test_call_without_key_refused_says_how_to_give_one(
    target: Target, gateway: Callable[..., None]
) -> None:
    gateway(lambda _: httpx.Response(401, json={"detail": "No key", "code": "unauthenticated"}))
    with Api(target) as api, pytest.raises(CommandError, match="PENSTOCK_API_KEY"):
        api.call("GET", "/v1/runs")


def test_call_unreachable_names_the_address(target: Target, gateway: Callable[..., None]) -> None:
    def refuse(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    gateway(refuse)
    with (
        Api(target) as api,
        pytest.raises(CommandError, match=r"no gateway at http://gateway\.test"),
    ):
        api.call("GET", "/v1/runs")


def test_call_of_something_else_than_a_gateway_says_so(
    target: Target, gateway: Callable[..., None]
) -> None:
    gateway(lambda _: httpx.Response(200, content=b"<html>hello</html>"))
    with Api(target) as api, pytest.raises(CommandError, match="is no gateway"):
        api.call("GET", "/v1/runs")


def test_api_with_a_broken_url_is_misuse(target: Target) -> None:
    with pytest.raises(CommandError, match="is not a URL") as caught:
        Api(target._replace(url="http://[::1"))
    assert caught.value.exit_code == 2


def test_pages_follow_the_cursor_up_to_the_limit(
    target: Target, gateway: Callable[..., None], requests: list[httpx.Request]
) -> None:
    def page(request: httpx.Request) -> httpx.Response:
        first = "cursor" not in request.url.params
        items = [1, 2] if first else [3, 4]
        return httpx.Response(200, json={"items": items, "next_cursor": "c1" if first else "c2"})

    gateway(page)
    with Api(target) as api:
        assert list(api.pages("/v1/runs", {"status": "done"}, 3)) == [1, 2, 3]
    assert [dict(request.url.params) for request in requests] == [
        {"status": "done", "limit": "3"},
        {"status": "done", "limit": "1", "cursor": "c1"},
    ]


class Broken(httpx.SyncByteStream):
    """Sends its bytes, then breaks off."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __iter__(self) -> Iterator[bytes]:
        yield self._content
        raise httpx.ReadError("gone")


def test_events_broken_off_resume_after_the_last_id(
    target: Target,
    gateway: Callable[..., None],
    requests: list[httpx.Request],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    answers = iter(
        [
            httpx.Response(200, stream=Broken(b'id: 7\ndata: {"n": 1}\n\ndata: {"n": 2}\n\n')),
            httpx.Response(200, content=b'id: 9\nevent: run_done\ndata: {"n": 3}\n\n'),
        ]
    )
    gateway(lambda _: next(answers))
    with Api(target) as api:
        found = list(api.events("/v1/runs/R/events"))
    assert [event.data["n"] for event in found] == [1, 2, 3]
    assert [request.headers["last-event-id"] for request in requests] == ["0", "7"]


def test_events_refused_are_not_tried_again(
    target: Target, gateway: Callable[..., None], requests: list[httpx.Request]
) -> None:
    gateway(lambda _: httpx.Response(404, json={"detail": "No such run", "code": "run_not_found"}))
    with Api(target) as api, pytest.raises(CommandError, match="No such run"):
        list(api.events("/v1/runs/R/events"))
    assert len(requests) == 1


def test_parse_events_reads_comments_multiline_data_and_empty_ids() -> None:
    lines = [": keep-alive", "", "event: a", 'data: {"x":', "data: 1}", "id", "", "id: 5", ""]
    assert list(parse_events(iter(lines))) == [("", "a", {"x": 1})]
