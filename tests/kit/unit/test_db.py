"""Owns the tests of database URLs and of what every connection starts with."""

import pytest

from services.kit.db import DatabaseUrlError, connection_string, connection_words, parsed_url


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_usual_urls_are_taken(scheme):
    url = parsed_url(f"{scheme}://user:p%40ss%25word@host:5433/data%20base")
    assert url.drivername == "postgresql+psycopg"
    assert (url.username, url.password, url.host, url.port) == ("user", "p@ss%word", "host", 5433)


def test_a_connection_string_keeps_what_the_url_says():
    assert (
        connection_string("postgres://u:p%40%25@h:1/d?sslmode=require")
        == "postgresql://u:p%40%25@h:1/d?sslmode=require"
    )
    assert connection_string("postgresql:///d?host=/tmp/a b") == "postgresql:///d?host=%2Ftmp%2Fa+b"


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("", "no database is configured"),
        ("hunter2", "cannot be read"),
        ("postgresql://u:hunter2@h:port/d", "cannot be read"),
        ("mysql://u:hunter2@h/d", "not mysql"),
        ("postgresql+asyncpg://u:hunter2@h/d", r"not postgresql\+asyncpg"),
    ],
)
def test_other_urls_are_refused_without_repeating_them(url, complaint):
    with pytest.raises(DatabaseUrlError, match=complaint) as caught:
        parsed_url(url)
    assert "hunter2" not in str(caught.value)


def test_what_the_url_says_of_its_connections_wins():
    words = connection_words(
        "postgresql://h/d?connect_timeout=9&keepalives_idle=60&target_session_attrs=any&options=-c%20a%3Db",
        "named",
        "-c a=c",
    )
    assert words.keys().isdisjoint({"connect_timeout", "keepalives_idle", "target_session_attrs"})
    assert (words["application_name"], words["tcp_user_timeout"]) == ("named", 15_000)
    assert words["options"].endswith("-c a=c -c a=b")
