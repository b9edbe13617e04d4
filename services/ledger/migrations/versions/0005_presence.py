"""When a server of the ledger was last there, so that no hold lapses because none was."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE presence (
            one BOOLEAN NOT NULL DEFAULT true CHECK (one),
            seen_at TIMESTAMP WITH TIME ZONE NOT NULL,
            PRIMARY KEY (one)
        )
    """)
