"""Which months were detached, and what limits without an end still count of them."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

STATEMENTS = (
    # Months leave in order, so the last row says from when on everything is still in the journal.
    """
    CREATE TABLE archived_months (
        month TEXT NOT NULL,
        journal_rows BIGINT NOT NULL,
        usage_rows BIGINT NOT NULL,
        detached_at TIMESTAMP WITH TIME ZONE NOT NULL,
        archived_at TIMESTAMP WITH TIME ZONE,
        dropped_at TIMESTAMP WITH TIME ZONE,
        PRIMARY KEY (month)
    )
    """,
    # What the usage records of detached months come to, for a lifetime limit that is made later.
    """
    CREATE TABLE archived_use (
        account_id TEXT NOT NULL,
        key_id TEXT NOT NULL,
        workspace TEXT NOT NULL,
        billed BIGINT NOT NULL,
        tokens BIGINT NOT NULL,
        requests BIGINT NOT NULL,
        PRIMARY KEY (account_id, key_id, workspace)
    )
    """,
    # Read for a customer as the others are: see 0003.
    "ALTER TABLE archived_use ENABLE ROW LEVEL SECURITY",
    """
    DO $$
    DECLARE
        reader TEXT := current_user || '_reader';
    BEGIN
        EXECUTE format('GRANT SELECT ON archived_use TO %I', reader);
        EXECUTE format('CREATE POLICY customer ON archived_use FOR SELECT TO %I '
            'USING (account_id = current_setting(''tollkeeper.account'', true))', reader);
    END $$
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        # The driver takes % for a placeholder.
        op.get_bind().exec_driver_sql(statement.replace("%", "%%"))
