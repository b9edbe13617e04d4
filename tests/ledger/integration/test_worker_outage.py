"""The worker while the database is away: it goes on, and its log stays readable."""

import asyncio

from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from deploy.local.ports import free_port
from services.kit.metrics import JOB_FAILING
from services.ledger.settings import LedgerSettings
from services.ledger.worker import work


def failing(job):
    return REGISTRY.get_sample_value("tollkeeper_job_failing", {"task": job})


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
            assert {failing(job) for job in JOBS} == {1}
            stop.set()
            await working
    for line in logs:
        assert "exc_info" not in line
        assert "connection" in line["error"]
        assert len(str(line)) < 500


async def test_jobs_that_work_again_are_told_as_such(ledger_settings):
    for job in JOBS:
        JOB_FAILING.labels(job).set(1)
    stop = asyncio.Event()
    working = asyncio.create_task(work(ledger_settings, stop))
    async with asyncio.timeout(30):
        while {failing(job) for job in JOBS} != {0}:  # noqa: ASYNC110 (a metric tells nobody)
            await asyncio.sleep(0.02)
    stop.set()
    await working
