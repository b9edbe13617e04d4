"""Accounts' price overrides and their ends, each a catalogue version of its own; why a plan's version was made."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_WRITTEN_ONCE = ("price_overrides", "price_override_ends")


def upgrade() -> None:
    # An override, or its end, is a version that changes no price of the catalogue's.
    op.execute("""
        ALTER TABLE catalogue_versions
            DROP CONSTRAINT catalogue_versions_prices_changed_check,
            ADD CONSTRAINT catalogue_versions_prices_changed_check CHECK (prices_changed >= 0),
            ADD COLUMN account_id text NOT NULL DEFAULT ''
    """)
    op.execute("ALTER TABLE plans ADD COLUMN reason text NOT NULL DEFAULT ''")
    op.execute("""
        CREATE TABLE price_overrides (
            version bigint PRIMARY KEY REFERENCES catalogue_versions,
            account_id text NOT NULL,
            provider text NOT NULL,
            model text NOT NULL,
            effective_from timestamptz NOT NULL,
            agreed_until timestamptz CHECK (agreed_until > effective_from),
            multiplier_millionths bigint NOT NULL CHECK (multiplier_millionths >= 0),
            rates jsonb NOT NULL CHECK ((jsonb_array_length(rates) > 0) <> (multiplier_millionths > 0))
        )
    """)
    op.execute("""
        CREATE TABLE price_override_ends (
            version bigint PRIMARY KEY REFERENCES catalogue_versions,
            account_id text NOT NULL,
            provider text NOT NULL,
            model text NOT NULL,
            ended_at timestamptz NOT NULL
        )
    """)
    for table in _WRITTEN_ONCE:
        op.execute(f"CREATE INDEX {table}_by_account ON {table} (account_id)")
        op.execute(f"""
            CREATE TRIGGER written_once BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}
            FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()
        """)


def downgrade() -> None:
    for table in _WRITTEN_ONCE:
        op.execute(f"DROP TABLE {table}")
    op.execute("ALTER TABLE plans DROP COLUMN reason")
    op.execute("ALTER TABLE catalogue_versions DROP COLUMN account_id")
