"""How a hold ended, so that a replayed settlement gives the first answer again."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # With defaults, so that the previous release, which does not know the columns, can still write.
    op.execute("""
        ALTER TABLE holds
            ADD COLUMN end_available BIGINT NOT NULL DEFAULT 0,
            ADD COLUMN was_expired BOOLEAN NOT NULL DEFAULT false
    """)
