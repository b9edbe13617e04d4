"""Sums of all usage by day, which operators' reports are made of, and which accounts used anything on a day."""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

STATEMENTS = (
    # Sums of sums may need more than 64 bits, whatever a record says it has used.
    """
    CREATE TABLE day_sums (
        day DATE NOT NULL,
        provider TEXT NOT NULL,
        model TEXT NOT NULL,
        requests BIGINT NOT NULL,
        input_tokens NUMERIC NOT NULL,
        output_tokens NUMERIC NOT NULL,
        cached_tokens NUMERIC NOT NULL,
        reasoning_tokens NUMERIC NOT NULL,
        cost NUMERIC NOT NULL,
        billed NUMERIC NOT NULL,
        estimated_requests BIGINT NOT NULL,
        unbilled_requests BIGINT NOT NULL,
        internal_requests BIGINT NOT NULL,
        internal_tokens NUMERIC NOT NULL,
        PRIMARY KEY (day, provider, model)
    )
    """,
    """
    CREATE TABLE active_days (
        account_id TEXT NOT NULL,
        day DATE NOT NULL,
        PRIMARY KEY (account_id, day)
    )
    """,
    "CREATE INDEX active_days_by_day ON active_days (day)",
    # No customer is shown it; whoever reads for one sees no more of it than of the other tables (0003).
    "ALTER TABLE active_days ENABLE ROW LEVEL SECURITY",
    """
    DO $$
    DECLARE
        reader TEXT := current_user || '_reader';
    BEGIN
        EXECUTE format('GRANT SELECT ON active_days TO %I', reader);
        EXECUTE format('CREATE POLICY customer ON active_days FOR SELECT TO %I '
            'USING (account_id = current_setting(''tollkeeper.account'', true))', reader);
    END $$
    """,
    # Through which position of each writer's slot of the usage feed the records are in the sums.
    "CREATE TABLE summed_slots (slot SMALLINT PRIMARY KEY, position BIGINT NOT NULL)",
    "INSERT INTO summed_slots SELECT slot, 0 FROM feed_slots",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        # The driver takes % for a placeholder.
        op.get_bind().exec_driver_sql(statement.replace("%", "%%"))
