"""Accounts, their moves between plans, and the outbox."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "accounts",
        sa.Column("account_id", sa.Text(collation="C"), primary_key=True),
        sa.Column("display_name", sa.Text, nullable=False),
        sa.Column("email", sa.Text, nullable=False),
        sa.Column("plan_id", sa.Text, nullable=False),
        sa.Column("plan_version", sa.Integer, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("cycle_anchor", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_as", sa.Text, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("outbox_sequence", sa.BigInteger, nullable=False),
        sa.Column("renews_grant", sa.Boolean, nullable=False),
        sa.Column("granted_until", sa.DateTime(timezone=True)),
        sa.CheckConstraint(
            "status IN ('active', 'grace', 'limited', 'suspended', 'closed')", name="accounts_status_known"
        ),
        sa.CheckConstraint("NOT renews_grant OR granted_until IS NOT NULL", name="accounts_grant_dated"),
    )
    op.create_index("accounts_by_grant", "accounts", ["granted_until"], postgresql_where=sa.text("renews_grant"))
    op.create_index("accounts_by_plan", "accounts", ["plan_id", "account_id"])
    op.create_table(
        "plan_changes",
        sa.Column("account_id", sa.Text(collation="C"), sa.ForeignKey("accounts.account_id"), primary_key=True),
        sa.Column("request_id", sa.Text(collation="C"), primary_key=True),
        sa.Column("from_plan_id", sa.Text, nullable=False),
        sa.Column("from_plan_version", sa.Integer, nullable=False),
        sa.Column("plan_id", sa.Text, nullable=False),
        sa.Column("plan_version", sa.Integer, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "outbox",
        sa.Column("account_id", sa.Text(collation="C"), sa.ForeignKey("accounts.account_id"), primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("payload", postgresql.JSONB, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("attempts", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("leased_until", sa.DateTime(timezone=True)),
        sa.Column("delivered_at", sa.DateTime(timezone=True)),
        sa.Column("last_error", sa.Text, nullable=False, server_default=sa.text("''")),
    )
    waiting = sa.text("delivered_at IS NULL")
    op.create_index("outbox_waiting", "outbox", ["next_attempt_at"], postgresql_where=waiting)
    op.create_index("outbox_waiting_of_account", "outbox", ["account_id", "sequence"], postgresql_where=waiting)
    op.create_index(
        "outbox_delivered", "outbox", ["delivered_at"], postgresql_where=sa.text("delivered_at IS NOT NULL")
    )


def downgrade() -> None:
    op.drop_table("outbox")
    op.drop_table("plan_changes")
    op.drop_table("accounts")
