"""Settings of a process that runs steps."""

from __future__ import annotations

from pydantic import Field, SecretStr, field_validator

from penstock.runner.rates import read_rules
from penstock.settings import CommaList, CoreSettings
from penstock.stack import read_stack_file


class RunnerSettings(CoreSettings):
    """For a process built on the runner SDK."""

    drain_seconds: float = Field(
        default=25.0,
        ge=0,
        description="Time for steps in work to end after SIGTERM; the rest is handed back. "
        "25: below the 30 seconds after which Kubernetes kills.",
    )
    rate_limits: CommaList = Field(
        default=(),
        description="What all runners together may do, separated by commas: `openai=60/m` (calls "
        "to a provider in a minute; `s`, `h`, `d` as well), `openai=60/m:10` (at most 10 of them "
        "at once), `openai=90000t/m` (tokens), `openai=8` (at the same time). The name is a "
        "provider (`openai`, or `openai@host:port` where agents name an `api_base`), a model "
        "(`openai/gpt-5-mini`) or a queue (`tool.http`, `agent.default`). Empty: only you know "
        "what your accounts allow. The same for all runners.",
    )
    redis_url: SecretStr | None = Field(
        default=None,
        description="Where rate limits are counted, such as `redis://127.0.0.1:6379/0`. None: in "
        "a bucket of the bus, enough for hundreds of limited calls a second.",
    )

    @field_validator("rate_limits")
    @classmethod
    def _check_limits(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        read_rules(value)
        return value


def find_settings() -> RunnerSettings:
    """Build the settings of a runner that was given none.

    ``PENSTOCK_*`` variables come first. Where none names the bus, it is that of the stack that
    runs in the data folder, as for the command line; else the default address.

    Raises:
        ValidationError: A variable has a value that is not allowed.
    """
    settings = RunnerSettings()
    if "nats_url" in settings.model_fields_set:
        return settings
    stack = read_stack_file(settings.data_dir)
    return settings if stack is None else settings.model_copy(update={"nats_url": stack.nats_url})


class EgressSettings(RunnerSettings):
    """For a runner that sends HTTP requests to URLs of definitions."""

    http_allow: CommaList = Field(
        default=(),
        description="Hosts (`api.internal`, `*.corp.example`) and networks (`10.1.0.0/16`) that "
        "tools and agents over HTTP may reach although they are not public, separated by commas. "
        "Empty: a URL may come from a model, and must not lead into your network.",
    )
