from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect

from penstock import db
from penstock_registry.store import revision
from penstock_registry.tables import PACKAGE, REVISION, Table


def differences(connection: Connection) -> list[object]:
    context = MigrationContext.configure(
        connection, opts={"version_table": f"alembic_version_{PACKAGE}", "compare_type": True}
    )
    return list(compare_metadata(context, Table.metadata))


def unnamed(connection: Connection) -> list[str]:
    inspector = inspect(connection)
    return [
        table
        for table in Table.metadata.tables
        if not inspector.get_pk_constraint(table)["name"]
        or any(not unique["name"] for unique in inspector.get_unique_constraints(table))
        or any(not foreign["name"] for foreign in inspector.get_foreign_keys(table))
    ]


async def test_migrations_make_the_tables_that_the_code_knows(database_url: str) -> None:
    engine = db.create_engine(database_url)

    assert await revision(engine) is None
    await db.upgrade(engine, package=PACKAGE)
    await db.upgrade(engine, package=PACKAGE)

    assert await revision(engine) == REVISION
    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []
        assert await connection.run_sync(unnamed) == []
    await engine.dispose()


def test_every_table_has_a_tenant_and_times() -> None:
    for table in Table.metadata.tables.values():
        assert {"tenant_id", "created_at", "updated_at", "deleted_at"} <= set(table.columns.keys())
