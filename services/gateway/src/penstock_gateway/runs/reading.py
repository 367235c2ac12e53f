"""Reading runs: state, events as pages or as a stream, and asking them to stop."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from penstock.runs.events import CLIENT_EVENT, EventType, events_of
from penstock.runs.views import RUN_VIEW
from penstock_gateway.core.preferences import (
    cursor,
    event_types,
    flag,
    page_size,
    sequence,
    step_window,
    wait_seconds,
    wants_events,
)
from penstock_gateway.core.requests import CANCEL_RUN
from penstock_gateway.gateway import Gateway
from penstock_gateway.hot import read
from penstock_gateway.middleware.entry import read_body
from penstock_gateway.raw import Answer
from penstock_gateway.runs.stream import EventStreamAnswer


class Reading:
    """The endpoints about one run."""

    def __init__(self, gateway: Gateway) -> None:
        """Use the gateway's parts; they exist once it is open."""
        self._gateway = gateway

    async def get_run(self, request: Request) -> Response:
        """Return a run, folded from its log: never stale.

        `?at_seq=N` shows it as it was at a sequence of the log, `?node_records=true` all that it
        decided. `Prefer: wait=N` waits until it has ended or its caller is to execute tools.
        `steps` holds the first 250 steps; the rest follows by `next_steps_cursor`, and
        `step_counts` counts all of them.
        """
        headers = dict(request.scope["headers"])
        caller = self._gateway.door.caller(headers)
        caller.require("viewer")
        query, runs = request.query_params, self._gateway.runs
        run_id: str = request.path_params["run_id"]
        node_records = flag(query.get("node_records"), path="node_records")
        at_seq = sequence(query.get("at_seq"), path="at_seq")
        window = step_window(query.get("steps_limit"), query.get("steps_cursor"))
        seconds = wait_seconds(headers.get(b"prefer"), self._gateway.settings.max_wait_seconds)
        if seconds is None or at_seq is not None:
            state = await runs.state(caller.tenant, run_id, at_seq=at_seq)
            applied = []
        else:
            state = await self._gateway.attention.settled(caller.tenant, run_id, seconds)
            applied = [(b"preference-applied", b"wait=%d" % seconds)]
        view = await runs.view_of(state, node_records=node_records, window=window)
        return Answer(RUN_VIEW.dump_json(view), 200, applied)

    async def get_events(self, request: Request) -> Response:
        """Return a run's events: a page of JSON, or a stream with `Accept: text/event-stream`.

        Events of the log have ids; give the last one as `Last-Event-ID` (or `?after=`) to resume
        on any replica. Deltas have none and are sent again from the beginning of a step that has
        not ended. Comments keep the connection alive.
        """
        headers = dict(request.scope["headers"])
        caller = self._gateway.door.caller(headers)
        caller.require("viewer")
        query = request.query_params
        run_id: str = request.path_params["run_id"]
        last = headers.get(b"last-event-id")
        after = cursor(last.decode("latin-1") if last else None, query.get("after"))
        types = event_types(query.get("types"))
        if not wants_events(headers.get(b"accept")):
            limit = page_size(query.get("limit"))
            return await self._page(caller.tenant, run_id, after, types, limit)
        # The run has to exist: a stream cannot say 404 any more.
        await self._gateway.runs.require(caller.tenant, run_id)
        stream = await self._gateway.streams.open(caller.tenant, run_id, after=after, types=types)
        return EventStreamAnswer(stream)

    async def _page(
        self,
        tenant: str,
        run_id: str,
        after: int,
        types: frozenset[EventType] | None,
        limit: int,
    ) -> Response:
        entries = await self._gateway.runs.entries(tenant, run_id)
        items: list[bytes] = []
        last, more = after, False
        for entry in entries:
            if entry.seq <= after:
                continue
            if len(items) >= limit:
                # A fact's events stay together: the id of the last one stands for all.
                more = True
                break
            items += [
                CLIENT_EVENT.dump_json(event, exclude_none=True)
                for event in events_of(entry)
                if types is None or event.type in types
            ]
            last = entry.seq
        following = b'"%d"' % last if more else b"null"
        body = b'{"items":[%b],"next_cursor":%b,"last_id":%d}' % (
            b",".join(items),
            following,
            last,
        )
        return Answer(body)

    async def cancel_run(self, request: Request) -> Response:
        """Ask a run to stop. Answers 202 with the run; 200 if it has ended already."""
        headers = dict(request.scope["headers"])
        caller = self._gateway.door.caller(headers)
        caller.require("operator")
        body = await read_body(headers, request.receive, self._gateway.settings.max_body_bytes)
        given = read(CANCEL_RUN, body)
        runs = self._gateway.runs
        run_id: str = request.path_params["run_id"]
        view = await runs.view(caller.tenant, run_id)
        if view.status.final:
            return Answer(RUN_VIEW.dump_json(view))
        if not await self._gateway.controls.cancel(caller, run_id, given.reason):
            # Somebody has asked before: that is as good.
            view = await runs.view(caller.tenant, run_id)
        return Answer(RUN_VIEW.dump_json(view), 200 if view.status.final else 202)
