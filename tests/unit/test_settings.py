from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import Field, SecretStr, ValidationError

from penstock.db import sqlite_file
from penstock.settings import CoreSettings, DatabaseSettings, settings_markdown


class LedgerSettings(DatabaseSettings):
    """Settings of a service for this test."""

    database_file: ClassVar[str] = "ledger.db"

    pages: int = Field(default=3, description="Pages | sheets. 3: enough.")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "PENSTOCK_DATABASE_URL", "PENSTOCK_RUNNER_TTL_SECONDS"):
        monkeypatch.delenv(name, raising=False)


def test_heartbeat_not_given_is_a_third_of_the_ttl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_RUNNER_TTL_SECONDS", "9")

    assert CoreSettings().runner_heartbeat_seconds == 3


def test_settings_are_frozen() -> None:
    settings = CoreSettings()

    with pytest.raises(ValidationError, match="frozen"):
        settings.shards = 4  # type: ignore[misc]


def test_nats_url_with_several_servers_is_split() -> None:
    settings = CoreSettings(nats_url="nats://a:4222, nats://b:4222,")

    assert settings.nats_servers == ["nats://a:4222", "nats://b:4222"]


def test_nats_auth_gives_only_what_is_set(tmp_path: Path) -> None:
    settings = CoreSettings(
        nats_user="u", nats_password=SecretStr("p"), nats_credentials_file=tmp_path
    )

    assert settings.nats_auth() == {
        "user": "u",
        "password": "p",
        "user_credentials": str(tmp_path),
    }
    assert CoreSettings().nats_auth() == {}


def test_secrets_are_not_shown() -> None:
    settings = DatabaseSettings(nats_token=SecretStr("s3cret"), database_url=SecretStr("s3cret"))

    assert "s3cret" not in repr(settings)


def test_instance_id_is_one_subject_token() -> None:
    with pytest.raises(ValidationError):
        CoreSettings(instance_id="a.b")

    assert "." not in CoreSettings().instance_id


def test_database_url_not_given_is_the_services_own_file(tmp_path: Path) -> None:
    settings = LedgerSettings(data_dir=tmp_path)

    assert settings.resolved_database_url == f"sqlite:///{tmp_path}/ledger.db"


@pytest.mark.parametrize(
    "name", ["Bücher ✓", "what?", "a#b", "100%41", 'a "b"', "not utf-8 \udcff"]
)
def test_file_of_the_database_may_be_in_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    settings = LedgerSettings(data_dir=tmp_path / name)

    assert sqlite_file(settings.resolved_database_url) == f"{tmp_path}/{name}/ledger.db"


def test_database_url_prefers_penstocks_own_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://everybody")
    assert LedgerSettings().resolved_database_url == "postgresql://everybody"

    monkeypatch.setenv("PENSTOCK_DATABASE_URL", "postgresql://penstock")
    assert LedgerSettings().resolved_database_url == "postgresql://penstock"


@pytest.mark.parametrize("block", [CoreSettings, DatabaseSettings])
def test_every_field_gives_its_reason(block: type[CoreSettings]) -> None:
    silent = [name for name, field in block.model_fields.items() if not field.description]

    assert silent == []


def test_markdown_shows_each_field_once_where_it_is_first_defined() -> None:
    text = settings_markdown([CoreSettings, DatabaseSettings, LedgerSettings])

    assert text.count("`PENSTOCK_NATS_URL`") == 1
    assert "| `PENSTOCK_DATABASE_URL`, `DATABASE_URL` | none |" in text
    assert "| `PENSTOCK_RUNNER_HEARTBEAT_SECONDS` | derived |" in text
    assert (
        "## LedgerSettings\n\nSettings of a service for this test.\n\n"
        "| variable | default | meaning, and why this default |\n|---|---|---|\n"
        "| `PENSTOCK_PAGES` | `3` | Pages \\| sheets. 3: enough. |\n"
    ) in text
