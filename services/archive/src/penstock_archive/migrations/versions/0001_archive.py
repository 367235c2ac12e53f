"""The first tables of the archive.

Revision: 0001, the first.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SEQ = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
INSTANT = sa.BigInteger().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")
TAGS = sa.Text().with_variant(postgresql.JSONB(), "postgresql")


def where(condition: str) -> dict[str, Any]:
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


def usage_columns() -> tuple[sa.Column[Any], ...]:
    return (
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cost_usd", sa.Double(), nullable=False),
        sa.Column("unknown_price", sa.Boolean(), nullable=False),
        sa.Column("model_calls", sa.BigInteger(), nullable=False),
        sa.Column(
            "steps", sa.BigInteger(), nullable=False, comment="attempts, of child runs as well"
        ),
    )


def upgrade() -> None:
    op.create_table(
        "facts",
        sa.Column("seq", SEQ, autoincrement=False, nullable=False, comment="stream sequence"),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False, comment="JSON as it stands in the log"),
        sa.Column("occurred_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_facts")),
    )
    op.create_index(op.f("ix_facts_run_id_seq"), "facts", ["run_id", "seq"])
    op.create_table(
        "runs",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("last_seq", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", INSTANT, comment="null: only facts that change nothing were seen"),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("output", sa.Text(), comment="JSON; null above 16 KiB, see facts"),
        sa.Column("error", sa.Text(), comment="JSON"),
        sa.Column("ended_at", INSTANT),
        *usage_columns(),
        sa.Column("error_code", sa.Text()),
        sa.Column(
            "profile", sa.Text(), comment="JSON: of runs of many facts, once it was asked for"
        ),
        sa.Column(
            "seq",
            sa.BigInteger(),
            comment="of the invoking fact; null while that is not seen",
        ),
        sa.Column("name", sa.Text()),
        sa.Column("kind", sa.Text()),
        sa.Column("version", sa.BigInteger()),
        sa.Column("plan_digest", sa.Text()),
        sa.Column("session_id", sa.Text()),
        sa.Column("trigger", sa.Text()),
        sa.Column("requested_by", sa.Text()),
        sa.Column("tags", TAGS),
        sa.Column("input", sa.Text(), comment="JSON; null above 16 KiB, see facts"),
        sa.Column("created_at", INSTANT),
        sa.Column("parent_run_id", sa.Text()),
        sa.Column("root_run_id", sa.Text(), comment="null: it has no parent"),
        sa.Column("forked_from", sa.Text()),
        sa.PrimaryKeyConstraint("tenant", "run_id", name=op.f("pk_runs")),
    )
    op.create_index(op.f("ix_runs_tenant_seq"), "runs", ["tenant", "seq"])
    op.create_index(op.f("ix_runs_tenant_name_seq"), "runs", ["tenant", "name", "seq"])
    op.create_index(
        op.f("ix_runs_tenant_ended_at_seq"),
        "runs",
        ["tenant", "ended_at", "seq"],
        **where("ended_at IS NOT NULL"),
    )
    op.create_index(op.f("ix_runs_seq"), "runs", ["seq"], **where("ended_at IS NULL"))
    op.create_index(
        op.f("ix_runs_tenant_session_id_seq"),
        "runs",
        ["tenant", "session_id", "seq"],
        **where("session_id IS NOT NULL"),
    )
    for column_name in ("parent_run_id", "root_run_id"):
        op.create_index(
            op.f(f"ix_runs_tenant_{column_name}"),
            "runs",
            ["tenant", column_name],
            **where(f"{column_name} IS NOT NULL"),
        )
    op.create_table(
        "steps",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("step_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("decision", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("scheduled_at", INSTANT, nullable=False),
        sa.Column("started_at", INSTANT),
        sa.Column("ended_at", INSTANT),
        sa.Column(
            "output",
            sa.Text(),
            comment="JSON, cut off where output_truncated; whole in facts",
        ),
        sa.Column("output_truncated", sa.Boolean(), nullable=False),
        sa.Column("error", sa.Text(), comment="JSON"),
        sa.Column("usage", sa.Text(), comment="JSON"),
        sa.Column("model", sa.Text()),
        sa.PrimaryKeyConstraint("tenant", "run_id", "step_id", name=op.f("pk_steps")),
    )
    op.create_index(op.f("ix_steps_tenant_scheduled_at"), "steps", ["tenant", "scheduled_at"])
    op.create_table(
        "sessions",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False, comment="what its latest run executes"),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("updated_at", INSTANT, nullable=False),
        sa.Column("last_run_id", sa.Text(), nullable=False),
        sa.Column(
            "last_seq",
            sa.BigInteger(),
            nullable=False,
            comment="of the latest run's invoking fact",
        ),
        sa.Column("deleted_seq", sa.BigInteger(), comment="rows up to it are deleted"),
        sa.PrimaryKeyConstraint("tenant", "session_id", name=op.f("pk_sessions")),
    )
    op.create_index(op.f("ix_sessions_tenant_last_seq"), "sessions", ["tenant", "last_seq"])
    op.create_table(
        "messages",
        sa.Column("seq", SEQ, autoincrement=False, nullable=False, comment="of the fact behind it"),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("occurred_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_messages")),
    )
    op.create_index(
        op.f("ix_messages_tenant_session_id_seq"), "messages", ["tenant", "session_id", "seq"]
    )
    op.create_table(
        "usage",
        sa.Column("seq", SEQ, autoincrement=False, nullable=False, comment="of the fact behind it"),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("step_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False, comment="agent or tool"),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        *usage_columns(),
        sa.Column("occurred_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_usage")),
    )
    op.create_index(op.f("ix_usage_tenant_occurred_at"), "usage", ["tenant", "occurred_at"])
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
    op.create_table(
        "projection",
        sa.Column("stream", sa.Text(), nullable=False),
        sa.Column("last_seq", sa.BigInteger(), nullable=False, comment="all up to it is projected"),
        sa.Column(
            "created",
            sa.Text(),
            nullable=False,
            comment="when the stream came to be, its identity",
        ),
        sa.Column(
            "generation", sa.BigInteger(), nullable=False, comment="grows when rows were deleted"
        ),
        sa.Column("rebuild_until", sa.BigInteger(), comment="null: the tables were never rebuilt"),
        sa.PrimaryKeyConstraint("stream", name=op.f("pk_projection")),
    )


def downgrade() -> None:
    for table in (
        *("tombstones", "claims", "signals", "projection", "usage", "messages", "sessions"),
        *("steps", "runs", "facts"),
    ):
        op.drop_table(table)
