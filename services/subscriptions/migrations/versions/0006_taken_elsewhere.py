"""What of credit that was taken back came from other credit, since it had been spent."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "stripe_grants",
        sa.Column("taken_elsewhere_nanos", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    )
