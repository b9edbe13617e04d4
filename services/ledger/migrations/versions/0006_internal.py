"""Calls made with internal keys, which nobody bills, are told from those that a metered plan bills by its meters."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE usage ADD COLUMN internal BOOLEAN NOT NULL DEFAULT false")
