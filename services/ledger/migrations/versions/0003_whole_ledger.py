"""Refunds, rollover, use counted for limits, the usage feed, what was archived, and row-level security."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# Tables with customers' rows: read for a customer under row-level security, by the role `<owner>_reader`.
CUSTOMER_TABLES = (
    "accounts", "subject_limits", "grants", "holds", "ended_holds", "requests", "journal", "undone", "usage",
)  # fmt: skip

STATEMENTS = (
    # A cycle that an anchor's change cut short began when it was changed, so its start is kept.
    "ALTER TABLE accounts ADD COLUMN cycle_start TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT now()",
    "UPDATE accounts SET cycle_start = least(cycle_end - interval '1 month', now())",
    """
    ALTER TABLE grants
        ADD COLUMN rollover_cap BIGINT NOT NULL DEFAULT 0,
        ADD COLUMN expired BIGINT NOT NULL DEFAULT 0
    """,
    "ALTER TABLE journal ADD COLUMN original_id TEXT NOT NULL DEFAULT ''",
    """
    CREATE TABLE undone (
        account_id TEXT NOT NULL,
        sequence BIGINT NOT NULL,
        amount BIGINT NOT NULL CHECK (amount > 0),
        PRIMARY KEY (account_id, sequence)
    )
    """,
    # What limits count, whatever was reported, and when its hold was made; further counts that prices depend on.
    """
    ALTER TABLE usage
        ADD COLUMN tokens BIGINT NOT NULL DEFAULT 0,
        ADD COLUMN requests BIGINT NOT NULL DEFAULT 1,
        ADD COLUMN counted_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT now(),
        ADD COLUMN units JSONB NOT NULL DEFAULT '{}',
        ADD COLUMN feed_slot SMALLINT NOT NULL DEFAULT 0,
        ADD COLUMN feed_position BIGINT NOT NULL DEFAULT 0,
        ADD COLUMN fed_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT now()
    """,
    """
    UPDATE usage u SET tokens = u.input_tokens + u.output_tokens, counted_at = u.created_at, fed_at = u.created_at,
        feed_position = n.position
    FROM (
        SELECT account_id, usage_number, row_number() OVER (ORDER BY created_at, account_id, usage_number) AS position
        FROM usage
    ) n WHERE n.account_id = u.account_id AND n.usage_number = u.usage_number
    """,
    "CREATE INDEX usage_feed ON usage (feed_slot, feed_position)",
    # One row per writer connection: where its records have got to in the feed. See store/batches.py.
    """
    CREATE TABLE feed_slots (
        slot SMALLINT PRIMARY KEY,
        position BIGINT NOT NULL,
        fed_at TIMESTAMP WITH TIME ZONE NOT NULL
    ) WITH (fillfactor = 20)
    """,
    "INSERT INTO feed_slots SELECT slot, 0, now() FROM generate_series(0, 63) AS slot",
    "UPDATE feed_slots SET position = (SELECT count(*) FROM usage) WHERE slot = 0",
    # Of a hold that ended long ago, its name: it cannot be made again.
    """
    CREATE TABLE ended_holds (
        account_id TEXT NOT NULL,
        hold_id TEXT NOT NULL,
        PRIMARY KEY (account_id, hold_id)
    )
    """,
    # Where an account's journal and usage begin once earlier months are archived: what those add up to.
    """
    CREATE TABLE checkpoints (
        account_id TEXT NOT NULL,
        sequence BIGINT NOT NULL,
        hash BYTEA NOT NULL,
        funding BIGINT NOT NULL,
        available BIGINT NOT NULL,
        held BIGINT NOT NULL,
        spent BIGINT NOT NULL,
        expired BIGINT NOT NULL,
        grant_uses JSONB NOT NULL,
        usage_number BIGINT NOT NULL,
        archived_before TIMESTAMP WITH TIME ZONE NOT NULL,
        PRIMARY KEY (account_id)
    )
    """,
    # Limits count their whole window now, and rows hold grants and limits as lists of values. They are read and written
    # whole with every operation and never looked into here, so they are JSON that is only checked.
    """
    UPDATE accounts SET
        grants = (SELECT coalesce(jsonb_agg(jsonb_build_array(g->'grant_id', g->'source', g->'priority', g->'order',
            g->'expires_at', g->'amount', g->'remaining', g->'reserved', 0) ORDER BY n), '[]')
            FROM jsonb_array_elements(grants) WITH ORDINALITY AS x(g, n)),
        limits = (SELECT coalesce(jsonb_agg(jsonb_build_array(g->'scope', g->'subject', g->'unit', g->'window',
            g->'amount', g->'mode', g->'warn_percent', g->'window_start', g->'window_end', g->'used', g->'held')
            ORDER BY n), '[]') FROM jsonb_array_elements(limits) WITH ORDINALITY AS x(g, n))
    """,
    """
    UPDATE subject_limits SET
        limits = (SELECT coalesce(jsonb_agg(jsonb_build_array(g->'scope', g->'subject', g->'unit', g->'window',
            g->'amount', g->'mode', g->'warn_percent', g->'window_start', g->'window_end', g->'used', g->'held')
            ORDER BY n), '[]') FROM jsonb_array_elements(limits) WITH ORDINALITY AS x(g, n))
    """,
    "ALTER TABLE accounts ALTER COLUMN grants TYPE JSON, ALTER COLUMN limits TYPE JSON",
    "ALTER TABLE subject_limits ALTER COLUMN limits TYPE JSON",
)

# The role that reads for customers. A service's owner may often not make roles: then whoever makes the database does.
READER = """
DO $$
DECLARE
    reader TEXT := current_user || '_reader';
    customer_table TEXT;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = reader) THEN
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN', reader);
            EXECUTE format('GRANT %I TO %I', reader, current_user);
        EXCEPTION
            WHEN duplicate_object OR unique_violation THEN NULL;
            WHEN insufficient_privilege THEN
                RAISE EXCEPTION 'the role % is missing; let an administrator run: CREATE ROLE % NOLOGIN; GRANT % TO %',
                    reader, reader, reader, current_user;
        END;
    END IF;
    FOREACH customer_table IN ARRAY ARRAY[CUSTOMER_TABLES] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', customer_table);
        EXECUTE format('GRANT SELECT ON %I TO %I', customer_table, reader);
        EXECUTE format('CREATE POLICY customer ON %I FOR SELECT TO %I '
            'USING (account_id = current_setting(''tollkeeper.account'', true))', customer_table, reader);
    END LOOP;
END $$
"""


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
    tables = ", ".join(f"'{name}'" for name in CUSTOMER_TABLES)
    # The driver takes % for a placeholder.
    op.get_bind().exec_driver_sql(READER.replace("CUSTOMER_TABLES", tables).replace("%", "%%"))
