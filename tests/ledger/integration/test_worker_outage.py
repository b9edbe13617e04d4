"""The worker while the database is away: it goes on, and its log stays readable."""

import asyncio

from structlog.testing import capture_logs

from deploy.local.ports import free_port
from services.ledger.settings import LedgerSettings
from services.ledger.worker import work

JOBS = {"sweep", "partitions", "retention", "report"}


async def test_jobs_that_an_outage_fails_are_logged_in_a_line_each():
    """Each fails every second or so: tracebacks would turn all else out of the logs."""
    nowhere = LedgerSettings(database_url=f"postgresql://nobody@127.0.0.1:{free_port()}/none")
    stop = asyncio.Event()
    with capture_logs() as logs:
        working = asyncio.create_task(work(nowhere, stop))
        async with asyncio.timeout(30):
            while {line.get("job") for line in logs} < JOBS:  # noqa: ASYNC110 (a log tells nobody)
                await asyncio.sleep(0.02)
            stop.set()
            await working
    for line in logs:
        assert "exc_info" not in line
        assert "connection" in line["error"]
        assert len(str(line)) < 500
