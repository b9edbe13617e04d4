"""What was asked of Stripe: requests, previews; rules of auto-recharge and what they bought."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def _moment(name: str, **options: object) -> sa.Column:
    return sa.Column(name, sa.DateTime(timezone=True), **options)


def _account(**options: object) -> sa.Column:
    return sa.Column("account_id", sa.Text(collation="C"), sa.ForeignKey("accounts.account_id"), **options)


def _text(name: str, **options: object) -> sa.Column:
    return sa.Column(name, sa.Text, nullable=False, **options)


def _nanos(name: str) -> sa.Column:
    return sa.Column(name, sa.BigInteger, nullable=False)


def upgrade() -> None:
    op.create_table(
        "stripe_requests",
        _account(primary_key=True),
        sa.Column("use_case", sa.Text(collation="C"), primary_key=True),
        sa.Column("request_id", sa.Text(collation="C"), primary_key=True),
        _text("fingerprint"),
        sa.Column("asked", postgresql.JSONB, nullable=False),
        sa.Column("answer", postgresql.JSONB),
        _moment("created_at", nullable=False, server_default=sa.func.now()),
    )
    op.create_index("stripe_requests_by_age", "stripe_requests", ["created_at"])
    op.create_table(
        "stripe_previews",
        _account(primary_key=True),
        _text("subscription_id"),
        _text("target"),
        sa.Column("proration_date", sa.BigInteger, nullable=False),
        _moment("created_at", nullable=False),
    )
    op.create_table(
        "auto_recharges",
        _account(primary_key=True),
        sa.Column("enabled", sa.Boolean, nullable=False),
        _nanos("threshold_nanos"),
        _nanos("amount_nanos"),
        _nanos("monthly_cap_nanos"),
        sa.Column("armed", sa.Boolean, nullable=False),
        _moment("updated_at", nullable=False, server_default=sa.func.now()),
        _moment("look_at", nullable=False, server_default=sa.func.now()),
    )
    op.create_index(
        "auto_recharges_by_look", "auto_recharges", ["look_at"], postgresql_where=sa.text("enabled OR NOT armed")
    )
    op.create_table(
        "recharges",
        _account(primary_key=True),
        sa.Column("request_id", sa.Text(collation="C"), primary_key=True),
        _nanos("amount_nanos"),
        _text("status"),
        sa.Column("lifts", sa.Boolean, nullable=False),
        _text("customer_id"),
        _text("payment_method_id"),
        _text("payment_intent_id", server_default=sa.text("''")),
        _text("error", server_default=sa.text("''")),
        _moment("created_at", nullable=False),
        sa.CheckConstraint("status IN ('pending', 'paid', 'granted', 'failed')", name="recharges_status_known"),
    )
    op.create_index("recharges_by_age", "recharges", ["account_id", "created_at"])
    op.create_index(
        "recharges_open",
        "recharges",
        ["account_id"],
        unique=True,
        postgresql_where=sa.text("status IN ('pending', 'paid')"),
    )


def downgrade() -> None:
    for table in ("recharges", "auto_recharges", "stripe_previews", "stripe_requests"):
        op.drop_table(table)
