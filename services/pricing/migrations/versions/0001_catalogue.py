"""The catalogue: versions, prices, plans, and the keys of the requests that wrote them."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_WRITTEN_ONCE = ("catalogue_versions", "prices", "plans", "requests")


def upgrade() -> None:
    op.execute("""
        CREATE TABLE catalogue_state (
            id smallint PRIMARY KEY CHECK (id = 1),
            revision bigint NOT NULL,
            latest_version bigint NOT NULL
        )
    """)
    op.execute("INSERT INTO catalogue_state (id, revision, latest_version) VALUES (1, 0, 0)")
    op.execute("""
        CREATE TABLE catalogue_versions (
            version bigint PRIMARY KEY CHECK (version > 0),
            effective_from timestamptz NOT NULL,
            created_at timestamptz NOT NULL,
            author text NOT NULL,
            reason text NOT NULL,
            prices_changed integer NOT NULL CHECK (prices_changed > 0)
        )
    """)
    op.execute("""
        CREATE TABLE prices (
            provider text NOT NULL,
            model text NOT NULL,
            version bigint NOT NULL REFERENCES catalogue_versions,
            effective_from timestamptz NOT NULL,
            mode text NOT NULL,
            display_name text NOT NULL,
            max_input_tokens bigint NOT NULL CHECK (max_input_tokens >= 0),
            max_output_tokens bigint NOT NULL CHECK (max_output_tokens >= 0),
            withdrawn boolean NOT NULL,
            rates jsonb NOT NULL CHECK (withdrawn OR jsonb_array_length(rates) > 0),
            PRIMARY KEY (provider, model, version)
        )
    """)
    op.execute("CREATE INDEX prices_by_version ON prices (version)")
    op.execute("""
        CREATE TABLE plans (
            plan_id text NOT NULL,
            version integer NOT NULL CHECK (version > 0),
            display_name text NOT NULL,
            kind text NOT NULL CHECK (kind IN ('subscription', 'metered', 'prepaid')),
            price_nanos bigint NOT NULL CHECK (price_nanos >= 0),
            annual_discount_basis_points integer NOT NULL CHECK (annual_discount_basis_points BETWEEN 0 AND 10000),
            margin_basis_points integer NOT NULL CHECK (margin_basis_points BETWEEN 0 AND 9999),
            promotional_grant_nanos bigint NOT NULL CHECK (promotional_grant_nanos >= 0),
            tokens_per_cycle bigint NOT NULL CHECK (tokens_per_cycle >= 0),
            requests_per_cycle bigint NOT NULL CHECK (requests_per_cycle >= 0),
            max_tokens_per_request bigint NOT NULL CHECK (max_tokens_per_request >= 0),
            requests_per_minute integer NOT NULL CHECK (requests_per_minute >= 0),
            tokens_per_minute bigint NOT NULL CHECK (tokens_per_minute >= 0),
            providers text[] NOT NULL,
            models text[] NOT NULL,
            multiplier_millionths bigint NOT NULL CHECK (multiplier_millionths > 0),
            overage_nanos_per_million_tokens bigint NOT NULL CHECK (overage_nanos_per_million_tokens >= 0),
            metrics jsonb NOT NULL,
            rollover_cap_nanos bigint NOT NULL CHECK (rollover_cap_nanos >= 0),
            grace_days integer NOT NULL CHECK (grace_days >= 0),
            warn_percent integer NOT NULL CHECK (warn_percent BETWEEN 1 AND 100),
            retired boolean NOT NULL,
            created_at timestamptz NOT NULL,
            author text NOT NULL,
            revision bigint NOT NULL,
            PRIMARY KEY (plan_id, version)
        )
    """)
    op.execute("CREATE INDEX plans_by_revision ON plans (revision)")
    op.execute("""
        CREATE TABLE requests (
            request_id text PRIMARY KEY,
            operation text NOT NULL,
            body_sha256 bytea NOT NULL,
            version bigint NOT NULL,
            created_at timestamptz NOT NULL
        )
    """)
    op.execute("""
        CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION '% is written once and never changed', TG_TABLE_NAME;
        END
        $$
    """)
    for table in _WRITTEN_ONCE:
        op.execute(f"""
            CREATE TRIGGER written_once BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}
            FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()
        """)


def downgrade() -> None:
    for table in ("requests", "plans", "prices", "catalogue_versions", "catalogue_state"):
        op.execute(f"DROP TABLE {table}")
    op.execute("DROP FUNCTION refuse_change()")
