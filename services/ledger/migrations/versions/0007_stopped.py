"""Accounts that are suspended or closed are found without going through all: subscriptions asks for them often."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        # What a build that was broken off has left is of no use.
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS accounts_stopped")
        op.execute("CREATE INDEX CONCURRENTLY accounts_stopped ON accounts (status, account_id) WHERE status <> 'open'")
