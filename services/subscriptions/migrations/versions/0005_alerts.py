"""Alerts, where they are sent, and how far each has come; accounts of late use, found by its minute."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def _key(name: str, **options: object) -> sa.Column:
    return sa.Column(name, sa.Text(collation="C"), **options)


def _moment(name: str, **options: object) -> sa.Column:
    return sa.Column(name, sa.DateTime(timezone=True), **options)


def upgrade() -> None:
    now, newest = sa.func.now(), sa.text("created_at DESC")
    op.create_table(
        "alerts",
        _key("alert_id", primary_key=True),
        _key("account_id", nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        _key("dedupe_key", nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("facts", postgresql.JSONB, nullable=False),
        _moment("created_at", nullable=False, server_default=now),
        sa.UniqueConstraint("account_id", "dedupe_key", name="alerts_once"),
    )
    op.create_index("alerts_of_account", "alerts", ["account_id", newest, sa.text("alert_id DESC")])
    op.create_index("alerts_by_time", "alerts", [newest, sa.text("alert_id DESC")])
    op.create_table(
        "alert_endpoints",
        _key("endpoint_id", primary_key=True),
        _key("account_id", nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("signing_secret", sa.Text, nullable=False),
        sa.Column("types", sa.ARRAY(sa.Text), nullable=False),
        _moment("created_at", nullable=False, server_default=now),
        _moment("deleted_at"),
    )
    op.create_index(
        "alert_endpoints_of_account", "alert_endpoints", ["account_id"], postgresql_where=sa.text("deleted_at IS NULL")
    )
    op.create_table(
        "alert_deliveries",
        _key("alert_id", primary_key=True),
        _key("endpoint_id", primary_key=True),
        sa.Column("status", sa.Text, nullable=False, server_default=sa.text("'pending'")),
        sa.Column("attempts", sa.Integer, nullable=False, server_default=sa.text("0")),
        _moment("next_attempt_at", nullable=False, server_default=now),
        _moment("delivered_at"),
        sa.Column("last_error", sa.Text, nullable=False, server_default=sa.text("''")),
    )
    op.create_index(
        "alert_deliveries_due",
        "alert_deliveries",
        ["next_attempt_at"],
        postgresql_where=sa.text("status = 'pending'"),
    )
    op.create_index("usage_minutes_by_time", "usage_minutes", ["minute"])
    op.create_index("accounts_by_creation", "accounts", ["created_at"])
    op.create_index("plan_changes_by_time", "plan_changes", ["created_at"])


def downgrade() -> None:
    op.drop_index("plan_changes_by_time", "plan_changes")
    op.drop_index("accounts_by_creation", "accounts")
    op.drop_index("usage_minutes_by_time", "usage_minutes")
    for table in ("alert_deliveries", "alert_endpoints", "alerts"):
        op.drop_table(table)
