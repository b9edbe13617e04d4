"""Answers of calls with an idempotency key."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql as pg

revision = "0003"
down_revision = "0002"
branch_labels = depends_on = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "answers",
        sa.Column("key_id", sa.Text, primary_key=True),
        sa.Column("idempotency_sha256", sa.LargeBinary, primary_key=True),
        sa.Column("request_mac", sa.LargeBinary, nullable=False),
        sa.Column("call_id", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("lease_until", _TIME, nullable=False),
        sa.Column("created_at", _TIME, nullable=False, server_default=sa.func.now()),
        sa.Column("expires_at", _TIME, nullable=False),
        sa.Column("http_status", sa.Integer),
        sa.Column("content_type", sa.Text),
        sa.Column("head", pg.JSONB),
        sa.Column("nonce", sa.LargeBinary),
        sa.Column("ciphertext", sa.LargeBinary),
        sa.CheckConstraint("state IN ('running', 'done', 'unkept')", name="answers_state_known"),
        sa.CheckConstraint("(state = 'done') = (ciphertext IS NOT NULL)", name="answers_done_whole"),
    )
    op.create_index("answers_expired", "answers", ["expires_at"])
    # What is encrypted does not get smaller: Postgres is not to try.
    op.execute("ALTER TABLE answers ALTER COLUMN ciphertext SET STORAGE EXTERNAL")


def downgrade() -> None:
    op.drop_table("answers")
