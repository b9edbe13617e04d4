"""The ledger's database as the Postgres operator makes it, and the ledger's own migration on it."""

from urllib.parse import urlsplit, urlunsplit

import psycopg
from deploy_manifests import of_kind, rendered

from services.kit import migrations
from services.ledger.__main__ import MIGRATIONS


def test_the_owner_that_may_not_make_roles_migrates_what_the_operator_has_made(postgres_server, database_url):
    """The operator runs `postInitApplicationSQL` as superuser in the new database; its owner may do nothing else."""
    url = database_url("ledger")
    owner = urlsplit(url).username
    (cluster,) = (
        found
        for found in of_kind(rendered("postgres/overlays/production"), "Cluster")
        if found["metadata"]["name"] == "tollkeeper-ledger-db"
    )
    admin = urlunsplit(urlsplit(postgres_server.url())._replace(path=urlsplit(url).path))
    with psycopg.connect(admin, autocommit=True) as connection:
        reader = "tollkeeper_ledger_reader"
        for statement in cluster["spec"]["bootstrap"]["initdb"]["postInitApplicationSQL"]:
            exists = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (reader,)).fetchone()
            if not (statement.startswith("CREATE ROLE") and exists):
                connection.execute(statement)
        row = connection.execute("SELECT rolcreaterole FROM pg_roles WHERE rolname = %s", (owner,)).fetchone()
        assert row == (False,)
    assert migrations.upgrade(url, MIGRATIONS) == migrations.head(MIGRATIONS)
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT pg_has_role(current_user, %s, 'SET')", (reader,)).fetchone()
        assert row == (True,)
