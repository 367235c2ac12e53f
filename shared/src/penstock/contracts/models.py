"""Models that agents may name: their providers, their parameters, and whose key is sent where.

One table serves the registry, which reports findings at apply, and the agent-runner, which checks
again: plans may come from elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from penstock.contracts.errors import ErrorDetail, finding
from penstock.contracts.json import Json

PROVIDERS: Final[Mapping[str, tuple[str, ...]]] = {
    "anthropic": ("ANTHROPIC_API_KEY",),
    "azure": ("AZURE_API_KEY",),
    "azure_ai": ("AZURE_AI_API_KEY",),
    "bedrock": (),
    "cerebras": ("CEREBRAS_API_KEY",),
    "cohere": ("COHERE_API_KEY", "CO_API_KEY"),
    "cohere_chat": ("COHERE_API_KEY", "CO_API_KEY"),
    "dashscope": ("DASHSCOPE_API_KEY",),
    "deepinfra": ("DEEPINFRA_API_KEY",),
    "deepseek": ("DEEPSEEK_API_KEY",),
    "featherless_ai": ("FEATHERLESS_AI_API_KEY",),
    "fireworks_ai": ("FIREWORKS_AI_API_KEY", "FIREWORKS_API_KEY"),
    "gemini": ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    "github": ("GITHUB_API_KEY",),
    "groq": ("GROQ_API_KEY",),
    "hosted_vllm": (),
    "hyperbolic": ("HYPERBOLIC_API_KEY",),
    "lambda_ai": ("LAMBDA_API_KEY",),
    "litellm_proxy": ("LITELLM_PROXY_API_KEY",),
    "llamafile": (),
    "lm_studio": (),
    "meta_llama": ("LLAMA_API_KEY",),
    "mistral": ("MISTRAL_API_KEY",),
    "moonshot": ("MOONSHOT_API_KEY",),
    "nebius": ("NEBIUS_API_KEY",),
    "novita": ("NOVITA_API_KEY",),
    "nscale": ("NSCALE_API_KEY",),
    "nvidia_nim": ("NVIDIA_NIM_API_KEY",),
    "ollama": (),
    "ollama_chat": (),
    "openai": ("OPENAI_API_KEY",),
    "openrouter": ("OPENROUTER_API_KEY",),
    "perplexity": ("PERPLEXITYAI_API_KEY", "PERPLEXITY_API_KEY"),
    "sambanova": ("SAMBANOVA_API_KEY",),
    "together_ai": ("TOGETHERAI_API_KEY", "TOGETHER_API_KEY", "TOGETHER_AI_API_KEY"),
    "vercel_ai_gateway": ("VERCEL_AI_GATEWAY_API_KEY",),
    "volcengine": ("VOLCENGINE_API_KEY",),
    "xai": ("XAI_API_KEY",),
    "zai": ("ZAI_API_KEY",),
}
"""Providers as LiteLLM names them, each with the variables of the agent-runner that hold its key,
the first that is set. Those without any need none, or (``bedrock``) find credentials themselves."""

AMBIENT: Final = frozenset({"bedrock"})
"""Providers whose credentials are not a key: they go to the provider's own address only."""

WITHOUT_ADDRESS: Final = frozenset(
    {"azure", "azure_ai", "hosted_vllm", "litellm_proxy", "lm_studio"}
)
"""Providers that have no address of their own: the agent or the agent-runner names one."""

PARAMETERS: Final = frozenset(
    {
        "api_base",
        "api_key",
        "api_version",
        "audio",
        "format",
        "frequency_penalty",
        "guided_choice",
        "guided_grammar",
        "guided_json",
        "guided_regex",
        "keep_alive",
        "logit_bias",
        "max_completion_tokens",
        "max_tokens",
        "min_p",
        "mirostat",
        "mirostat_eta",
        "mirostat_tau",
        "modalities",
        "num_ctx",
        "num_predict",
        "parallel_tool_calls",
        "prediction",
        "presence_penalty",
        "prompt_cache_key",
        "reasoning_effort",
        "repeat_penalty",
        "repetition_penalty",
        "response_format",
        "safety_identifier",
        "seed",
        "service_tier",
        "stop",
        "store",
        "temperature",
        "thinking",
        "tool_choice",
        "top_k",
        "top_p",
        "typical_p",
        "user",
        "verbosity",
        "web_search_options",
    }
)
"""Parameters that an agent may set. All others are the runner's, or would choose another address,
another key, a retry or a callback."""

_MODEL: Final = re.compile(r"([a-z0-9_]+)/([A-Za-z0-9][A-Za-z0-9._:@+/-]*)")
# Libraries disagree about what the host is where other characters occur.
_URL: Final = re.compile(
    r"(?P<scheme>https?)://(?P<host>[A-Za-z0-9._-]+|\[[0-9a-fA-F:.]+\])(:(?P<port>[0-9]{1,5}))?"
    r"(/[A-Za-z0-9._~:/+=-]*)?"
)
_API_VERSION: Final = re.compile(r"[A-Za-z0-9._-]{1,40}")
_SECRET: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


def provider_name(model: str) -> str:
    """Return the provider of a model: the part before the first ``/``."""
    return model.partition("/")[0]


def model_faults(model: str, path: str) -> Iterator[ErrorDetail]:
    """Yield a finding unless the name of a model is ``PROVIDER/NAME`` of a known provider."""
    found = _MODEL.fullmatch(model)
    if found is None or ".." in model or "//" in model:
        allowed = "PROVIDER/NAME, such as openai/gpt-5-mini"
        message = "names no provider" if "/" not in model else "is not the name of a model"
        yield finding(path, f"{model!r} {message}", allowed)
    elif found[1] not in PROVIDERS:
        yield finding(path, f"there is no provider {found[1]!r}", ", ".join(PROVIDERS))


def parameter_faults(
    model: str, parameters: Mapping[str, Json], path: str
) -> Iterator[ErrorDetail]:
    """Yield a finding for each parameter that an agent cannot set, or not to its value.

    Args:
        model: The agent's model.
        parameters: As the document gives them.
        path: Where they stand.
    """
    for name, value in parameters.items():
        if name not in PARAMETERS:
            message = "is a parameter that an agent cannot set"
            yield finding(f"{path}.{name}", message, ", ".join(sorted(PARAMETERS)))
        elif name == "api_base" and not _is_base(value):
            yield finding(f"{path}.{name}", f"got {value!r}"[:200], "http://HOST or https://HOST")
        elif name == "api_base" and provider_name(model) in AMBIENT:
            message = f"{provider_name(model)} takes its credentials to its own address only"
            yield finding(f"{path}.{name}", message)
        elif name == "api_key" and value is not None and not _is_reference(value):
            # The value is not shown: it may be a key.
            message = "is not a reference to a secret"
            yield finding(f"{path}.{name}", message, "{secret: NAME}, for PENSTOCK_SECRET_NAME")
        elif name == "api_version" and not (
            isinstance(value, str) and _API_VERSION.fullmatch(value)
        ):
            yield finding(f"{path}.{name}", f"got {value!r}"[:200], "such as 2024-10-21")


def origin_of(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port of an ``http`` or ``https`` URL.

    Raises:
        ValueError: It is not one, or contains a user, a query or a fragment.
    """
    read = _URL.fullmatch(url)
    if read is None or not 0 < int(read["port"] or 1) < 65_536:
        raise ValueError("not an http or https URL of a host and a path")
    port = read["port"] or {"http": 80, "https": 443}[read["scheme"]]
    return read["scheme"], read["host"].strip("[]").lower(), int(port)


def _is_base(value: Json) -> bool:
    try:
        return isinstance(value, str) and bool(origin_of(value))
    except ValueError:
        return False


def _is_reference(value: Json) -> bool:
    if not isinstance(value, dict) or value.keys() != {"secret"}:
        return False
    name = value["secret"]
    return isinstance(name, str) and _SECRET.fullmatch(name) is not None
