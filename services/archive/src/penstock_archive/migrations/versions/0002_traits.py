"""Traits of runs, by which filters that match little find them.

Revision: 0002, after 0001.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_COST = {
    "sqlite": "printf('%020d', CAST(cost_usd * 1e6 AS INTEGER))",
    "postgresql": "lpad(CAST(trunc(cost_usd * 1e6) AS BIGINT)::text, 20, '0')",
}
_TAGS = {"sqlite": "json_each(runs.tags)", "postgresql": "jsonb_each_text(runs.tags)"}


def upgrade() -> None:
    op.create_table(
        "traits",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column(
            "trait", sa.Text(), nullable=False, comment="status, error, cost_usd or tag.NAME"
        ),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False, comment="of the run's invoking fact"),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "trait", "value", "seq", name=op.f("pk_traits")),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_traits_tenant_run_id"), "traits", ["tenant", "run_id"])
    database = op.get_bind().dialect.name
    for trait, value, condition in (
        ("'status'", "status", "ended_at IS NOT NULL AND status <> 'done'"),
        ("'error'", "substr(error_code, 1, 256)", "error_code IS NOT NULL"),
        ("'cost_usd'", _COST[database], "ended_at IS NOT NULL AND cost_usd > 0"),
    ):
        fill(trait, value, f"runs WHERE {condition}")
    fill(
        "substr('tag.' || tag.key, 1, 256)",
        "substr(tag.value, 1, 256)",
        f"runs, {_TAGS[database]} AS tag WHERE tags IS NOT NULL",
    )


def fill(trait: str, value: str, source: str) -> None:
    op.execute(
        "INSERT INTO traits (tenant, trait, value, seq, run_id) "  # noqa: S608 - our own names
        f"SELECT tenant, {trait}, {value}, seq, run_id FROM {source} AND seq IS NOT NULL"
    )


def downgrade() -> None:
    op.drop_table("traits")
