"""Settings of the registry."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from penstock.settings import DatabaseSettings


class RegistrySettings(DatabaseSettings):
    """What the registry needs beyond what every service with a database does."""

    database_file: ClassVar[str] = "registry.db"

    registry_lost_kept_seconds: float = Field(
        default=900.0,
        ge=0,
        description="How long a lost runner stays listed. 900: long enough for an "
        "operator called by an alert to see which one it was.",
    )
    registry_repair_seconds: float = Field(
        default=300.0,
        ge=1,
        description="Time between two comparisons of the buckets with the database, beside those "
        "at start and after every reconnection. 300: a comparison reads one key per definition.",
    )
