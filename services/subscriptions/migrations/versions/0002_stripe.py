"""What Stripe tells: events, customers, subscriptions, payments, and the credit each gives."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def _moment(name: str, **options: object) -> sa.Column:
    return sa.Column(name, sa.DateTime(timezone=True), **options)


def _key(name: str) -> sa.Column:
    return sa.Column(name, sa.Text(collation="C"), primary_key=True)


def _text(name: str, **options: object) -> sa.Column:
    return sa.Column(name, sa.Text, nullable=False, **options)


def _account() -> sa.Column:
    return sa.Column("account_id", sa.Text(collation="C"), sa.ForeignKey("accounts.account_id"), nullable=False)


def upgrade() -> None:
    op.create_table(
        "stripe_events",
        _key("event_id"),
        _text("type"),
        _text("status"),
        sa.Column("account_id", sa.Text(collation="C"), sa.ForeignKey("accounts.account_id")),
        _text("body"),
        _moment("created_at", nullable=False),
        _moment("received_at", nullable=False, server_default=sa.func.now()),
        _moment("applied_at"),
        sa.Column("attempts", sa.Integer, nullable=False, server_default=sa.text("0")),
        _moment("next_attempt_at", server_default=sa.func.now()),
        _text("last_error", server_default=sa.text("''")),
        sa.CheckConstraint("status IN ('pending', 'applied', 'ignored', 'failed')", name="stripe_events_status_known"),
    )
    unrouted = sa.text("status = 'pending' AND account_id IS NULL")
    due = sa.text("status = 'pending' AND account_id IS NOT NULL")
    op.create_index("stripe_events_unrouted", "stripe_events", ["next_attempt_at"], postgresql_where=unrouted)
    op.create_index("stripe_events_due", "stripe_events", ["next_attempt_at"], postgresql_where=due)
    op.create_index(
        "stripe_events_of_account",
        "stripe_events",
        ["account_id", "received_at"],
        postgresql_where=sa.text("status = 'pending'"),
    )
    op.create_index(
        "stripe_events_failed", "stripe_events", ["next_attempt_at"], postgresql_where=sa.text("status = 'failed'")
    )
    op.create_index("stripe_events_by_time", "stripe_events", ["received_at", "event_id"])
    op.create_table(
        "stripe_leases",
        _key("account_id"),
        sa.Column("number", sa.BigInteger, nullable=False),
        _moment("leased_until", nullable=False),
    )
    op.create_table(
        "stripe_customers",
        _key("customer_id"),
        _account(),
        _moment("created_at", nullable=False, server_default=sa.func.now()),
        _moment("deleted_at"),
    )
    op.create_index(
        "stripe_customers_of_account",
        "stripe_customers",
        ["account_id"],
        unique=True,
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_table(
        "subscriptions",
        sa.Column("account_id", sa.Text(collation="C"), sa.ForeignKey("accounts.account_id"), primary_key=True),
        _text("subscription_id"),
        _text("status"),
        sa.Column("in_force", sa.Boolean, nullable=False),
        _text("plan_id"),
        sa.Column("plan_version", sa.Integer, nullable=False),
        _text("interval"),
        sa.Column("price_nanos", sa.BigInteger, nullable=False),
        _moment("period_start", nullable=False),
        _moment("period_end", nullable=False),
        sa.Column("cancel_at_period_end", sa.Boolean, nullable=False),
        _moment("trial_end"),
        _moment("failing_since"),
        _moment("grace_until"),
        _text("pending_plan_id", server_default=sa.text("''")),
        _moment("look_at"),
        _moment("updated_at", nullable=False, server_default=sa.func.now()),
    )
    op.create_index(
        "subscriptions_to_look_at", "subscriptions", ["look_at"], postgresql_where=sa.text("look_at IS NOT NULL")
    )
    op.create_table(
        "stripe_payments",
        _key("source_id"),
        _account(),
        _text("kind"),
        sa.Column("amount_nanos", sa.BigInteger, nullable=False),
        sa.Column("credit_nanos", sa.BigInteger, nullable=False),
        sa.Column("returned", postgresql.JSONB, nullable=False, server_default=sa.text("'{}'")),
        _moment("paid_at", nullable=False),
        sa.CheckConstraint("credit_nanos >= 0", name="stripe_payments_credit_not_negative"),
    )
    op.create_index("stripe_payments_of_account", "stripe_payments", ["account_id", "paid_at"])
    op.create_index("stripe_payments_by_time", "stripe_payments", ["paid_at"])
    op.create_table(
        "stripe_grants",
        sa.Column("account_id", sa.Text(collation="C"), sa.ForeignKey("accounts.account_id"), primary_key=True),
        _key("request_id"),
        sa.Column("source_id", sa.Text(collation="C"), sa.ForeignKey("stripe_payments.source_id"), nullable=False),
        sa.Column("part", sa.Integer, nullable=False),
        _text("source"),
        sa.Column("amount_nanos", sa.BigInteger, nullable=False),
        sa.Column("taken_back_nanos", sa.BigInteger, nullable=False, server_default=sa.text("0")),
        sa.Column("times_taken_back", sa.Integer, nullable=False, server_default=sa.text("0")),
        _moment("due_at", nullable=False),
        _moment("expires_at"),
        sa.Column("rollover_cap_nanos", sa.BigInteger, nullable=False),
        _moment("granted_at"),
        _text("transaction_id", server_default=sa.text("''")),
        sa.CheckConstraint(
            "taken_back_nanos BETWEEN 0 AND amount_nanos", name="stripe_grants_taken_back_within_amount"
        ),
    )
    op.create_index("stripe_grants_due", "stripe_grants", ["due_at"], postgresql_where=sa.text("granted_at IS NULL"))
    op.create_index("stripe_grants_of_source", "stripe_grants", ["source_id", "part"])


def downgrade() -> None:
    for table in ("stripe_grants", "stripe_payments", "subscriptions"):
        op.drop_table(table)
    for table in ("stripe_customers", "stripe_leases", "stripe_events"):
        op.drop_table(table)
