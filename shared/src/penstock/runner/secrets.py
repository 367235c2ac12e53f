"""Secrets of steps: references in the log, values in the handler's hands alone.

A value is read from the environment just before the handler is called, and masked in whatever
the handler gives back and in every line that the process logs from then on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from penstock.contracts.errors import RejectedError
from penstock.contracts.facts import StepScheduled
from penstock.contracts.json import Json
from penstock.expressions.secrets import SecretReference, fill_secrets
from penstock.masks import Mask
from penstock.telemetry.logs import conceal

SECRET_PREFIX: Final = "PENSTOCK_SECRET_"


class Filled(NamedTuple):
    """What the handler gets, and what must not be seen of it."""

    input: Json
    config: Json
    mask: Mask


class Secrets:
    """The secrets of one process."""

    __slots__ = ("_environment",)

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Say where secrets are found.

        Args:
            environment: ``PENSTOCK_SECRET_{NAME}`` holds secret ``NAME``.
        """
        self._environment = environment

    def fill(self, step: StepScheduled) -> Filled:
        """Return the step's input and config with its secrets in their places.

        Raises:
            RejectedError: ``secret_missing``, or ``secrets_misplaced``.
        """
        found: set[str] = set()

        def look_up(name: str) -> str:
            value = self._environment.get(SECRET_PREFIX + name)
            if value is None:
                raise RejectedError(
                    "secret_missing", f"the runner has no variable {SECRET_PREFIX}{name}"
                )
            found.add(value)
            return value

        places: dict[str, tuple[str | SecretReference, ...]] = {
            pointer: tuple(
                piece if isinstance(piece, str) else {"secret": piece.secret} for piece in pieces
            )
            for pointer, pieces in step.secrets.items()
        }
        filled = fill_secrets({"input": step.input, "config": step.config}, places, look_up)
        conceal(found)
        if not isinstance(filled, dict):
            raise RejectedError("secrets_misplaced", "a secret stands for the whole step")
        return Filled(filled["input"], filled["config"], Mask(found))
