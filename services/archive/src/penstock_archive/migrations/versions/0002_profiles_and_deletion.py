"""Profiles, families of runs, signals, and what deletion and rebuilding need.

Revision: 0002, after 0001.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

SEQ = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
INSTANT = sa.BigInteger().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")
ZERO = sa.text("0")


def where(condition: str) -> dict[str, Any]:
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


def upgrade() -> None:
    for table in ("runs", "usage"):
        op.add_column(
            table,
            sa.Column(
                "steps",
                sa.BigInteger(),
                nullable=False,
                server_default=ZERO,
                comment="attempts, of child runs as well",
            ),
        )
    for column in (
        sa.Column("decisions", sa.BigInteger(), nullable=False, server_default=ZERO),
        sa.Column("paused", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column(
            "pending", sa.Text(), comment="JSON: open node records that something outside settles"
        ),
        sa.Column("error_code", sa.Text()),
        sa.Column("profile", sa.Text(), comment="JSON, from its end on: of runs of many steps"),
        sa.Column("parent_run_id", sa.Text()),
        sa.Column("root_run_id", sa.Text(), comment="null: it has no parent"),
        sa.Column("forked_from", sa.Text()),
    ):
        op.add_column("runs", column)
    # A run under way had at least one decision.
    op.execute("UPDATE runs SET decisions = 1 WHERE status <> 'created'")
    op.create_index(op.f("ix_runs_tenant_name_seq"), "runs", ["tenant", "name", "seq"])
    op.create_index(
        op.f("ix_runs_tenant_ended_at_seq"),
        "runs",
        ["tenant", "ended_at", "seq"],
        **where("ended_at IS NOT NULL"),
    )
    op.create_index(op.f("ix_runs_seq"), "runs", ["seq"], **where("ended_at IS NULL"))
    for column_name in ("parent_run_id", "root_run_id"):
        op.create_index(
            op.f(f"ix_runs_tenant_{column_name}"),
            "runs",
            ["tenant", column_name],
            **where(f"{column_name} IS NOT NULL"),
        )
    op.add_column("steps", sa.Column("model", sa.Text()))
    op.add_column(
        "steps", sa.Column("earlier", sa.Text(), comment="JSON: the attempts before this one")
    )
    op.create_index(op.f("ix_steps_tenant_scheduled_at"), "steps", ["tenant", "scheduled_at"])
    op.create_index(op.f("ix_usage_tenant_run_id"), "usage", ["tenant", "run_id"])
    op.create_table(
        "signals",
        sa.Column("seq", SEQ, autoincrement=False, nullable=False, comment="of the fact behind it"),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("signal_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("from_run", sa.Text()),
        sa.Column("sent_by", sa.Text()),
        sa.Column("payload", sa.Text(), comment="JSON; null above 16 KiB, see facts"),
        sa.Column("occurred_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_signals")),
    )
    op.create_index(op.f("ix_signals_tenant_kind_seq"), "signals", ["tenant", "kind", "seq"])
    op.create_index(op.f("ix_signals_tenant_run_id"), "signals", ["tenant", "run_id"])
    op.create_table(
        "claims",
        sa.Column("seq", SEQ, autoincrement=False, nullable=False, comment="of the claiming fact"),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_claims")),
    )
    op.create_index(op.f("ix_claims_sha256"), "claims", ["sha256"])
    op.create_index(op.f("ix_claims_tenant_run_id"), "claims", ["tenant", "run_id"])
    op.create_table(
        "tombstones",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False, comment="rows up to it are deleted"),
        sa.Column("deleted_at", INSTANT, nullable=False),
        sa.Column("erased_at", INSTANT, comment="null: perhaps not yet gone from the bus"),
        sa.PrimaryKeyConstraint("tenant", "run_id", name=op.f("pk_tombstones")),
    )
    op.create_index(op.f("ix_tombstones_deleted_at"), "tombstones", ["deleted_at"])
    op.add_column(
        "projection",
        sa.Column(
            "generation",
            sa.BigInteger(),
            nullable=False,
            server_default=ZERO,
            comment="grows when rows were deleted",
        ),
    )
    op.add_column(
        "projection",
        sa.Column("rebuild_until", sa.BigInteger(), comment="null: the tables were never rebuilt"),
    )


def downgrade() -> None:
    for table in ("tombstones", "claims", "signals"):
        op.drop_table(table)
    op.drop_column("projection", "rebuild_until")
    op.drop_column("projection", "generation")
    op.drop_index(op.f("ix_usage_tenant_run_id"), "usage")
    op.drop_index(op.f("ix_steps_tenant_scheduled_at"), "steps")
    for name in (
        "ix_runs_tenant_root_run_id",
        "ix_runs_tenant_parent_run_id",
        "ix_runs_seq",
        "ix_runs_tenant_ended_at_seq",
        "ix_runs_tenant_name_seq",
    ):
        op.drop_index(op.f(name), "runs")
    for column in ("earlier", "model"):
        op.drop_column("steps", column)
    for column in (
        "forked_from",
        "root_run_id",
        "parent_run_id",
        "profile",
        "error_code",
        "pending",
        "paused",
        "decisions",
        "steps",
    ):
        op.drop_column("runs", column)
    op.drop_column("usage", "steps")
