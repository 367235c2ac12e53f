"""LiteLLM as the agent-runner uses it: silent, without retries, without keys, behind the guard.

LiteLLM reads keys from the environment in many places, some of which compare an address by a
part of it. Here it finds none: the runner takes them out and passes one with each call. All its
connections are those of `penstock.egress`.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Final, NoReturn

from penstock.contracts.errors import RejectedError
from penstock.contracts.models import PROVIDERS, origin_of
from penstock.telemetry.logs import EventLog

ORIGIN: Final[ContextVar[tuple[str, str, int] | None]] = ContextVar("origin", default=None)
"""The only address that the current turn may reach, where its agent names one."""

_KEYS: Final = frozenset(name for names in PROVIDERS.values() for name in names)
_KEY_ENDINGS: Final = ("_API_KEY", "_AD_TOKEN", "_API_TOKEN", "_AUTH_TOKEN")

log = EventLog(__name__)


def load_litellm(allow: Sequence[str] = ()) -> Any:
    """Import LiteLLM; takes seconds.

    Args:
        allow: Hosts and networks that may be reached although they are not public.
    """
    for name in [name for name in os.environ if name in _KEYS or name.endswith(_KEY_ENDINGS)]:
        del os.environ[name]
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    os.environ.setdefault("LITELLM_MODE", "PRODUCTION")  # else it reads a .env file
    litellm: Any = importlib.import_module("litellm")
    litellm.suppress_debug_info = True
    litellm.num_retries = 0
    litellm.disable_aiohttp_transport = True
    _guard(litellm, allow)
    log.info("models.loaded")
    return litellm


def _guard(litellm: Any, allow: Sequence[str]) -> None:
    """Replace every HTTP client that LiteLLM creates."""
    import httpx  # noqa: PLC0415 - loaded by LiteLLM

    from penstock.egress import guarded_client  # noqa: PLC0415

    handlers: Any = importlib.import_module("litellm.llms.custom_httpx.http_handler")
    context = httpx.create_ssl_context()

    async def check(request: httpx.Request) -> None:
        origin = ORIGIN.get()
        if origin is not None and origin_of(f"{request.url.copy_with(query=None)}") != origin:
            raise RejectedError(
                "address_refused", f"the agent's `api_base` is not at {request.url.host!r}"
            )

    def client(
        _self: Any = None,
        timeout: Any = None,
        event_hooks: Mapping[str, list[Callable[..., Any]]] | None = None,
        **_options: Any,
    ) -> httpx.AsyncClient:
        made = guarded_client(allow, context=context)
        made.timeout = timeout if timeout is not None else httpx.Timeout(600.0, connect=10.0)
        hooks = dict(event_hooks or {})
        made.event_hooks = {**hooks, "request": [*hooks.get("request", ()), check]}
        return made

    litellm.aclient_session = client()
    litellm.client_session = httpx.Client(transport=httpx.MockTransport(_refuse), trust_env=False)
    handlers.AsyncHTTPHandler.create_client = client
    # Blocking calls would stop all turns of this process.
    handlers.HTTPHandler.create_client = lambda _self: litellm.client_session


def _refuse(request: Any) -> NoReturn:
    raise RejectedError("address_refused", f"LiteLLM asked {request.url.host!r} by itself")
