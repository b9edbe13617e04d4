"""Usage events, their aggregates, the ledger's feed, and reports to meters."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def _moment(name: str, **options: object) -> sa.Column:
    return sa.Column(name, sa.DateTime(timezone=True), **options)


def _key(name: str) -> sa.Column:
    return sa.Column(name, sa.Text(collation="C"), primary_key=True)


def _sum(name: str) -> sa.Column:
    return sa.Column(name, sa.Numeric(30, 0), nullable=False)


def upgrade() -> None:
    op.create_table(
        "usage_events",
        _key("account_id"),
        _key("event_id"),
        sa.Column("metric", sa.Text, nullable=False),
        sa.Column("quantity", sa.BigInteger, nullable=False),
        _moment("occurred_at", nullable=False),
        sa.Column("labels", postgresql.JSONB),
        _moment("received_at", nullable=False, server_default=sa.func.now()),
        sa.Column("aggregated", sa.Boolean, nullable=False, server_default=sa.text("false")),
        sa.CheckConstraint("quantity > 0", name="usage_events_quantity_positive"),
    )
    waiting, aggregated = sa.text("NOT aggregated"), sa.text("aggregated")
    op.create_index("usage_events_waiting", "usage_events", ["received_at"], postgresql_where=waiting)
    op.create_index(
        "usage_events_waiting_of_account", "usage_events", ["account_id", "metric"], postgresql_where=waiting
    )
    op.create_index("usage_events_aggregated", "usage_events", ["received_at"], postgresql_where=aggregated)
    op.create_table(
        "usage_minutes",
        _key("account_id"),
        _key("metric"),
        _moment("minute", primary_key=True),
        _sum("emitted"),
        _sum("proxied"),
        sa.Column("last_quantity", sa.BigInteger),
        _moment("last_at"),
        _moment("due_since"),
    )
    op.create_index(
        "usage_minutes_due",
        "usage_minutes",
        ["account_id", "metric", "minute"],
        postgresql_where=sa.text("due_since IS NOT NULL"),
    )
    op.create_table(
        "usage_hours",
        _key("account_id"),
        _key("metric"),
        _moment("hour", primary_key=True),
        _sum("emitted"),
        _sum("proxied"),
    )
    op.create_table("usage_gauges", _key("account_id"), _key("metric"), _moment("look_at", nullable=False))
    op.create_index("usage_gauges_by_look", "usage_gauges", ["look_at"])
    op.create_table(
        "usage_limits",
        _key("account_id"),
        _moment("look_at", nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False, server_default=sa.text("0")),
        sa.Column("pushed", postgresql.JSONB, nullable=False, server_default=sa.text("'{}'")),
    )
    op.create_table(
        "usage_feed",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("cursor", sa.Text, nullable=False),
        _moment("updated_at", nullable=False, server_default=sa.func.now()),
    )
    op.execute("INSERT INTO usage_feed (name, cursor) VALUES ('ledger', '')")
    op.create_table(
        "meter_reports",
        _key("account_id"),
        _key("metric"),
        _moment("window_start", primary_key=True),
        sa.Column("sequence", sa.Integer, primary_key=True),
        _sum("value"),
        _moment("stamped_at", nullable=False),
        sa.Column("customer_id", sa.Text, nullable=False),
        _moment("created_at", nullable=False, server_default=sa.func.now()),
        sa.Column("attempts", sa.Integer, nullable=False, server_default=sa.text("0")),
        _moment("first_attempt_at"),
        _moment("next_attempt_at", nullable=False, server_default=sa.func.now()),
        _moment("sent_at"),
        sa.Column("last_error", sa.Text, nullable=False, server_default=sa.text("''")),
    )
    op.create_index(
        "meter_reports_unsent", "meter_reports", ["next_attempt_at"], postgresql_where=sa.text("sent_at IS NULL")
    )
    op.create_index("meter_reports_sent", "meter_reports", ["sent_at"], postgresql_where=sa.text("sent_at IS NOT NULL"))


def downgrade() -> None:
    for table in ("meter_reports", "usage_feed", "usage_limits", "usage_gauges"):
        op.drop_table(table)
    for table in ("usage_hours", "usage_minutes", "usage_events"):
        op.drop_table(table)
