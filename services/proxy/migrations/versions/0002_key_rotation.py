"""A rotated key names the first of its line, whose limits all of them count against."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = depends_on = None


def upgrade() -> None:
    # A constant default: the table is not rewritten, and the previous release inserts without the column.
    op.add_column("keys", sa.Column("first_key_id", sa.Text, nullable=False, server_default=""))


def downgrade() -> None:
    op.drop_column("keys", "first_key_id")
