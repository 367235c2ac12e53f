"""Keys of providers: where LiteLLM takes them, for every provider that an agent may name."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from typing import Any, cast

import pytest

from penstock.contracts.errors import ErrorFamily, PenstockError, RejectedError
from penstock.contracts.facts import ChatMessage
from penstock.contracts.models import AMBIENT, PROVIDERS
from penstock_agent_runner.core.turn import AgentConfig, TurnInput
from penstock_agent_runner.models import Request
from penstock_agent_runner.providers import ProviderModel
from tests.support.http_server import Answer, HttpServer

# LiteLLM and what it imports warn of their own affairs.
pytestmark = pytest.mark.filterwarnings("ignore")

CANARY = "canary-of-the-house"
OWN = "key-of-the-team"
HOUSE = {name: f"{CANARY}-{name}" for names in PROVIDERS.values() for name in names}
OTHERS = ("AZURE_AD_TOKEN", "AZURE_OPENAI_API_KEY", "HOSTED_VLLM_API_KEY", "OLLAMA_API_KEY")
VARIABLES = {**HOUSE, **dict.fromkeys(OTHERS, CANARY)}


@pytest.fixture
def server() -> Iterator[HttpServer]:
    with HttpServer(lambda _: Answer(status=400, body={"error": {"message": "no"}})) as server:
        yield server


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> ProviderModel:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    environment = {**os.environ, "PENSTOCK_SECRET_TEAM": OWN, "PENSTOCK_SECRET_EMPTY": ""}
    return ProviderModel(environment=environment, allow=["127.0.0.1"])


@pytest.fixture(autouse=True)
def fresh_clients() -> None:
    # LiteLLM's clients are global, and here each test has a model with its own guard.
    if "litellm" in sys.modules:
        cast("Any", sys.modules["litellm"]).in_memory_llm_clients_cache.flush_cache()


async def ask(model: ProviderModel, name: str, parameters: dict[str, Any]) -> PenstockError:
    request = Request(
        config=AgentConfig(model=name, parameters=parameters, stream=False),
        input=TurnInput(messages=(ChatMessage(role="user", content="How warm is Ulm?"),)),
        run_id="R",
        attempt=1,
        seconds=20.0,
        idempotency_key="R:a-1",
    )

    async def emit(text: str) -> None:
        raise AssertionError(text)

    with pytest.raises(PenstockError) as caught:
        await model.answer(request, emit)
    return caught.value


def received(server: HttpServer) -> str:
    return "\n".join(f"{call.path} {call.headers} {call.body!r}" for call in server.calls)


@pytest.mark.parametrize("provider", sorted(PROVIDERS.keys() - AMBIENT))
async def test_address_of_an_agent_receives_no_key_of_the_house(
    model: ProviderModel, server: HttpServer, provider: str
) -> None:
    base = {"api_base": server.url, "api_version": "2024-10-21"}
    await ask(model, f"{provider}/m", base)
    await ask(model, f"{provider}/m", {**base, "api_key": None})
    assert CANARY not in received(server)
    server.calls.clear()
    await ask(model, f"{provider}/m", {**base, "api_key": {"secret": "TEAM"}})
    assert OWN in received(server)
    assert CANARY not in received(server)
    assert len(server.calls) == 1


@pytest.mark.parametrize("provider", sorted(PROVIDERS.keys() - AMBIENT))
async def test_failure_of_a_provider_is_not_retried_here(
    model: ProviderModel, provider: str
) -> None:
    with HttpServer(lambda _: Answer(status=500, body={"error": {"message": "no"}})) as failing:
        error = await ask(
            model, f"{provider}/m", {"api_base": failing.url, "api_key": {"secret": "TEAM"}}
        )
        assert error.family is ErrorFamily.TRANSIENT
        assert len(failing.calls) == 1


@pytest.mark.parametrize(
    "parameters",
    [
        {"api_key": ""},
        {"api_key": False},
        {"api_key": 0},
        {"api_key": []},
        {"api_key": {}},
        {"api_key": "sk-literal"},
        {"api_key": {"secret": "../X"}},
        {"api_key": {"secret": "TEAM", "default": "x"}},
        {"api_key": "os.environ/OPENAI_API_KEY"},
        {"base_url": "http://127.0.0.1:1"},
        {"model_list": [{"model_name": "m", "litellm_params": {"model": "openai/m"}}]},
        {"custom_llm_provider": "groq"},
        {"extra_headers": {"authorization": "x"}},
        {"headers": {"host": "x"}},
        {"extra_body": {"azure_ad_token": "x"}},
        {"litellm_credential_name": "x"},
        {"client": "x"},
        {"azure_ad_token": "oidc/x"},
        {"aws_bedrock_runtime_endpoint": "http://x"},
        {"vertex_credentials": "/etc/passwd"},
        {"proxy": "http://127.0.0.1:1"},
        {"ssl_verify": False},
        {"caching": True},
        {"organization": "x"},
        {"metadata": {}},
        {"api_base": ""},
        {"api_base": None},
        {"api_base": ["http://127.0.0.1:1"]},
        {"api_base": "file:///etc/passwd"},
        {"api_base": "http://user:word@127.0.0.1:1"},
        {"api_base": "http://127.0.0.1:1\\@evil.example"},
        {"api_base": "http://127.0.0.1:1/#api.groq.com"},
        {"api_base": "http://127.0.0.1:1/?api.groq.com"},
        {"api_base": "http://127.0.0.1:99999"},
        {"api_base": "http:///v1"},
    ],
)
async def test_parameter_that_chooses_another_key_or_address_is_refused(
    model: ProviderModel, server: HttpServer, parameters: dict[str, Any]
) -> None:
    error = await ask(model, "openai/m", {"api_base": server.url, **parameters})
    assert error.code == "invalid_agent"
    assert error.details[0].path == f"parameters.{next(iter(parameters))}"
    assert "sk-literal" not in str(error.info())
    assert server.calls == []


@pytest.mark.parametrize(
    "name", ["gpt-5", "openai/", "huggingface/http://x", "openai/../x", "dotprompt/x", "openai/a b"]
)
async def test_model_that_is_none_of_a_known_provider_is_refused(
    model: ProviderModel, name: str
) -> None:
    error = await ask(model, name, {})
    assert (error.code, error.details[0].path) == ("invalid_agent", "model")


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1", "0"]
)
@pytest.mark.parametrize("provider", ["openai", "anthropic"])
async def test_address_that_is_not_public_is_refused_with_the_setting_that_allows_it(
    server: HttpServer, provider: str, host: str
) -> None:
    guarded = ProviderModel(environment={})
    error = await ask(guarded, f"{provider}/m", {"api_base": f"http://{host}:{server.port}"})
    assert isinstance(error, RejectedError)
    assert error.code == "address_refused"
    assert "PENSTOCK_HTTP_ALLOW" in error.message
    assert server.calls == []


@pytest.mark.parametrize("provider", ["openai", "anthropic", "ollama_chat", "mistral"])
async def test_redirect_and_proxy_of_the_environment_are_not_followed(
    model: ProviderModel, provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HttpServer(lambda _: Answer(body={})) as other:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, other.url)
        moved = Answer(status=307, headers={"location": f"{other.url}/v1"}, body={})
        with HttpServer(lambda _: moved) as first:
            parameters = {"api_base": first.url, "api_key": {"secret": "TEAM"}}
            await ask(model, f"{provider}/m", parameters)
            assert len(first.calls) == 1
        assert other.calls == []


async def test_provider_without_a_key_is_one_clear_error_before_any_request() -> None:
    error = await ask(ProviderModel(environment={}), "together_ai/m", {})
    assert isinstance(error, RejectedError)
    assert error.code == "model_key_missing"
    assert "TOGETHERAI_API_KEY" in error.message


@pytest.mark.parametrize("provider", ["lm_studio", "litellm_proxy", "azure"])
async def test_provider_without_an_address_does_not_send_its_key_to_another_one(
    model: ProviderModel, provider: str
) -> None:
    error = await ask(model, f"{provider}/m", {})
    assert error.code == "invalid_agent"
    assert f"{provider.upper()}_API_BASE" in error.message


async def test_secret_that_is_empty_counts_as_missing(
    model: ProviderModel, server: HttpServer
) -> None:
    parameters = {"api_base": server.url, "api_key": {"secret": "EMPTY"}}
    assert (await ask(model, "openai/m", parameters)).code == "secret_missing"
    assert server.calls == []


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
async def test_turns_at_the_same_time_reach_their_own_address_each(
    model: ProviderModel, server: HttpServer, provider: str
) -> None:
    with HttpServer(lambda _: Answer(status=400, body={"error": {"message": "no"}})) as other:
        addresses = [server.url, other.url] * 3
        errors = await asyncio.gather(
            *(ask(model, f"{provider}/m", {"api_base": address}) for address in addresses)
        )
        assert {error.code for error in errors} == {"model_request_invalid"}
        assert (len(server.calls), len(other.calls)) == (3, 3)
