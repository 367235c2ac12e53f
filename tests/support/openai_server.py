"""A scripted HTTP server in the shape of OpenAI's chat completions, on loopback."""

from __future__ import annotations

import json
import threading
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


@dataclass
class Reply:
    """What one request is answered with.

    With ``chunks`` it is a stream of server-sent events (text: sent as it is), else ``body`` as
    JSON.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    chunks: list[Any] | None = None
    done: bool = True
    """Whether the stream ends with ``[DONE]``."""


@dataclass
class Received:
    """A request as it came."""

    path: str
    headers: dict[str, str]
    body: Any


def chunk(
    content: str | None = None,
    *,
    calls: list[dict[str, Any]] | None = None,
    finish: str | None = None,
    model: str = "gpt-4o-mini",
) -> dict[str, Any]:
    """Return one piece of a streamed answer."""
    delta: dict[str, Any] = {}
    if content is not None:
        delta = {"role": "assistant", "content": content}
    if calls is not None:
        delta["tool_calls"] = calls
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": model,
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }


def usage_chunk(prompt: int, completion: int, model: str = "gpt-4o-mini") -> dict[str, Any]:
    """Return the last piece, which says what was used."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": model,
        "choices": [],
        "usage": usage(prompt, completion),
    }


def usage(prompt: int, completion: int) -> dict[str, int]:
    """Return usage as OpenAI states it."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def completion(
    content: str | None, *, calls: list[dict[str, Any]] | None = None, **more: Any
) -> dict[str, Any]:
    """Return a whole answer."""
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if calls is not None:
        message["tool_calls"] = calls
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4o-mini",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        **more,
    }


def failure(message: str, kind: str = "error") -> dict[str, Any]:
    """Return an error's body."""
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


class OpenAIServer:
    """Answers requests in order with the replies it was given; counts what came."""

    def __init__(self) -> None:
        """Bind a free port."""
        self.replies: deque[Reply] = deque()
        self.requests: list[Received] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )

    @property
    def url(self) -> str:
        """Base URL, as ``api_base`` takes it."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def script(self, *replies: Reply) -> None:
        """Add replies."""
        self.replies.extend(replies)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler_of(server: OpenAIServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 5.0

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            text = self.rfile.read(length).decode()
            server.requests.append(
                Received(
                    path=self.path,
                    headers={name.lower(): value for name, value in self.headers.items()},
                    body=json.loads(text) if text else None,
                )
            )
            if not server.replies:
                self._json(Reply(status=500, body=failure("the script has ended")))
                return
            reply = server.replies.popleft()
            if reply.chunks is None:
                self._json(reply)
            else:
                self._stream(reply, reply.chunks)

        def _json(self, reply: Reply) -> None:
            body = reply.body if isinstance(reply.body, str) else json.dumps(reply.body)
            self.send_response(reply.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body.encode())))
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode())

        def _stream(self, reply: Reply, chunks: list[Any]) -> None:
            self.send_response(reply.status)
            self.send_header("Content-Type", "text/event-stream")
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.end_headers()
            for item in chunks:
                data = item if isinstance(item, str) else f"data: {json.dumps(item)}\n\n"
                self.wfile.write(data.encode())
            if reply.done:
                self.wfile.write(b"data: [DONE]\n\n")
            self.wfile.flush()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    return Handler
