"""Accounts, grants, holds, limits, journal and usage."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

STATEMENTS = (
    """
    CREATE TABLE accounts (
        account_id TEXT NOT NULL,
        display_name TEXT NOT NULL,
        status TEXT NOT NULL,
        status_reason TEXT NOT NULL,
        overdraft_kind TEXT NOT NULL,
        overdraft_limit BIGINT NOT NULL,
        cycle_anchor TIMESTAMP WITH TIME ZONE NOT NULL,
        created_at TIMESTAMP WITH TIME ZONE NOT NULL,
        open_hash BYTEA NOT NULL,
        touched_at TIMESTAMP WITH TIME ZONE NOT NULL,
        cycle_end TIMESTAMP WITH TIME ZONE NOT NULL,
        sequence BIGINT NOT NULL,
        usage_sequence BIGINT NOT NULL,
        last_hash BYTEA NOT NULL,
        available BIGINT NOT NULL,
        held BIGINT NOT NULL,
        funded BIGINT NOT NULL,
        spent BIGINT NOT NULL,
        expired BIGINT NOT NULL,
        overdrawn BIGINT NOT NULL,
        unbacked BIGINT NOT NULL,
        cycle_spent BIGINT NOT NULL,
        grants JSONB NOT NULL,
        limits JSONB NOT NULL,
        next_event_at TIMESTAMP WITH TIME ZONE,
        PRIMARY KEY (account_id),
        CONSTRAINT accounts_balance CHECK (funded = available + held + spent + expired),
        CONSTRAINT accounts_not_negative CHECK (least(held, spent, expired, overdrawn, unbacked) >= 0)
    )
     WITH (fillfactor = 60)
    """,
    """
    CREATE INDEX accounts_due ON accounts (next_event_at) WHERE next_event_at IS NOT NULL
    """,
    """
    CREATE TABLE grants (
        account_id TEXT NOT NULL,
        grant_id TEXT NOT NULL,
        source TEXT NOT NULL,
        priority INTEGER NOT NULL,
        amount BIGINT NOT NULL,
        sequence BIGINT NOT NULL,
        created_at TIMESTAMP WITH TIME ZONE NOT NULL,
        expires_at TIMESTAMP WITH TIME ZONE,
        PRIMARY KEY (account_id, grant_id)
    )
    """,
    """
    CREATE TABLE holds (
        account_id TEXT NOT NULL,
        hold_id TEXT NOT NULL,
        status TEXT NOT NULL,
        amount BIGINT NOT NULL,
        tokens BIGINT NOT NULL,
        requests BIGINT NOT NULL,
        key_id TEXT NOT NULL,
        workspace TEXT NOT NULL,
        billable BOOLEAN NOT NULL,
        created_at TIMESTAMP WITH TIME ZONE NOT NULL,
        expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
        sequence BIGINT NOT NULL,
        reservations JSONB NOT NULL,
        unbacked BIGINT NOT NULL,
        settled BIGINT NOT NULL,
        ended_at TIMESTAMP WITH TIME ZONE,
        body_hash BYTEA NOT NULL,
        end_body_hash BYTEA NOT NULL,
        end_sequence BIGINT NOT NULL,
        usage_id TEXT NOT NULL,
        PRIMARY KEY (account_id, hold_id)
    )
    """,
    """
    CREATE INDEX holds_open ON holds (account_id, expires_at) WHERE status = 'open'
    """,
    """
    CREATE TABLE journal (
        account_id TEXT NOT NULL,
        sequence BIGINT NOT NULL,
        created_at TIMESTAMP WITH TIME ZONE NOT NULL,
        type TEXT NOT NULL,
        funding BIGINT NOT NULL,
        available BIGINT NOT NULL,
        held BIGINT NOT NULL,
        spent BIGINT NOT NULL,
        expired BIGINT NOT NULL,
        balance_after BIGINT NOT NULL,
        grant_uses JSONB NOT NULL,
        description TEXT NOT NULL,
        request_id TEXT NOT NULL,
        hold_id TEXT NOT NULL,
        usage_id TEXT NOT NULL,
        key_id TEXT NOT NULL,
        workspace TEXT NOT NULL,
        provider TEXT NOT NULL,
        model TEXT NOT NULL,
        hash BYTEA NOT NULL,
        PRIMARY KEY (account_id, sequence, created_at),
        CONSTRAINT journal_sums_to_zero CHECK (funding + available + held + spent + expired = 0)
    )
     PARTITION BY RANGE (created_at)
    """,
    """
    CREATE TABLE requests (
        account_id TEXT NOT NULL,
        request_id TEXT NOT NULL,
        body_hash BYTEA NOT NULL,
        sequence BIGINT NOT NULL,
        created_at TIMESTAMP WITH TIME ZONE NOT NULL,
        PRIMARY KEY (account_id, request_id)
    )
    """,
    """
    CREATE TABLE subject_limits (
        account_id TEXT NOT NULL,
        scope TEXT NOT NULL,
        subject TEXT NOT NULL,
        limits JSONB NOT NULL,
        PRIMARY KEY (account_id, scope, subject)
    )
     WITH (fillfactor = 60)
    """,
    """
    CREATE TABLE usage (
        account_id TEXT NOT NULL,
        usage_number BIGINT NOT NULL,
        created_at TIMESTAMP WITH TIME ZONE NOT NULL,
        key_id TEXT NOT NULL,
        workspace TEXT NOT NULL,
        hold_id TEXT NOT NULL,
        transaction_id TEXT NOT NULL,
        billed BIGINT NOT NULL,
        billable BOOLEAN NOT NULL,
        session TEXT NOT NULL,
        provider TEXT NOT NULL,
        model TEXT NOT NULL,
        endpoint TEXT NOT NULL,
        input_tokens BIGINT NOT NULL,
        output_tokens BIGINT NOT NULL,
        cached_tokens BIGINT NOT NULL,
        cache_write_tokens BIGINT NOT NULL,
        reasoning_tokens BIGINT NOT NULL,
        input_cost BIGINT NOT NULL,
        output_cost BIGINT NOT NULL,
        cost BIGINT NOT NULL,
        price_version BIGINT NOT NULL,
        duration_milliseconds BIGINT NOT NULL,
        status TEXT NOT NULL,
        estimated BOOLEAN NOT NULL,
        started_at TIMESTAMP WITH TIME ZONE,
        provider_request_id TEXT NOT NULL,
        service_tier TEXT NOT NULL,
        PRIMARY KEY (account_id, usage_number, created_at)
    )
     PARTITION BY RANGE (created_at)
    """,
    # Rows outside of every month made so far still have a place; partitions.py makes months ahead, so it stays empty.
    "CREATE TABLE journal_default PARTITION OF journal DEFAULT",
    "CREATE TABLE usage_default PARTITION OF usage DEFAULT",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
