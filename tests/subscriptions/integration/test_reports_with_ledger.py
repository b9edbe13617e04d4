"""Reports and alerts from a real ledger, served by a process of its own: figures agree with what was booked."""

import os
import subprocess
import sys
from types import SimpleNamespace

import grpc
import pytest
from subscriptions_peers import USD
from tollkeeper.ledger.v1 import ledger_service_pb2 as ledger_pb
from tollkeeper.ledger.v1 import resources_pb2 as ledger_resources
from tollkeeper.ledger.v1.ledger_service_pb2_grpc import LedgerServiceStub
from tollkeeper.subscriptions.v1 import billing_service_pb2 as billing_pb
from tollkeeper.subscriptions.v1 import operator_service_pb2 as pb

from deploy.local import ports
from services.kit.identity import Role
from services.subscriptions.alerts.watching import Views, Watcher


@pytest.fixture
def ledger(database_url, jwks_file, bearer, tmp_path):
    """A real ledger: its address, and `debit` for what the proxy books."""
    address = f"127.0.0.1:{ports.free_port()}"
    names = {"LISTEN": address, "DATABASE_URL": database_url("ledger"), "IDENTITY_JWKS_FILE": str(jwks_file)}
    environment = os.environ | {f"TOLLKEEPER_LEDGER_{name}": value for name, value in names.items()}
    environment |= {"TOLLKEEPER_LEDGER_METRICS_LISTEN": "", "TOLLKEEPER_LOG_LEVEL": "warning"}
    program = [sys.executable, "-m", "services.ledger"]
    log = tmp_path / "ledger.log"
    with log.open("w") as output:
        subprocess.run([*program, "migrate"], env=environment, stderr=output, check=True, timeout=60)
        process = subprocess.Popen([*program, "serve"], env=environment, stderr=output)
    try:
        with grpc.insecure_channel(address) as channel:
            grpc.channel_ready_future(channel).result(timeout=60)
            metadata = bearer(Role.SERVICE)
            stub = LedgerServiceStub(channel)

            def debit(account_id, billed_nanos, **usage):
                tokens = usage["input_tokens"] + usage["output_tokens"]
                request = ledger_pb.DebitAccountRequest(
                    account_id=account_id,
                    amount_nanos=billed_nanos,
                    tokens=tokens,
                    requests=1,
                    request_id=os.urandom(8).hex(),
                    usage=ledger_resources.UsageReport(status="ok", price_version=1, **usage),
                )
                return stub.DebitAccount(request, metadata=metadata, timeout=20)

            yield SimpleNamespace(address=address, debit=debit)
    finally:
        process.terminate()
        process.wait(20)


def test_figures_are_those_that_the_ledger_has_booked(operator, ledger):
    for account_id in ("acme", "beta"):
        created = operator(operator.customers.CreateAccount, pb.CreateAccountRequest(account_id=account_id))
        assert created.provisioned
    gpt = {"provider": "openai", "model": "gpt-3.5-turbo"}
    haiku = {"provider": "anthropic", "model": "claude-3-haiku"}
    ledger.debit("acme", 15_000_001, input_tokens=1000, output_tokens=234, cost_nanos=10_000_001, **gpt)
    ledger.debit("acme", 3, input_tokens=1, output_tokens=1, cost_nanos=2, **haiku)
    ledger.debit("beta", 7, input_tokens=3, output_tokens=0, cost_nanos=5, **gpt)
    found = operator(operator.billing.GetBillingStats, billing_pb.GetBillingStatsRequest(account_id="acme"))
    of_acme = billing_pb.PeriodStats(requests=2, tokens=1236, cost_nanos=10_000_003, billed_nanos=15_000_004)
    assert (found.today, found.month, found.cycle) == (of_acme, of_acme, of_acme)
    stats = operator(operator.customers.GetAccountStats, pb.GetAccountStatsRequest(account_id="acme"))
    assert (stats.available_nanos, stats.spent_nanos) == (5 * USD - 15_000_004, 15_000_004)
    assert stats.stats == found
    report = operator(operator.reports.GetOverviewReport, pb.GetOverviewReportRequest())
    assert report.today == report.month
    assert (report.today.requests, report.today.tokens) == (3, 1239)
    assert (report.today.api_cost_nanos, report.today.profit_nanos) == (10_000_008, -10_000_008)
    assert [(model.model, model.requests, model.cost_nanos) for model in report.today.models] == [
        ("gpt-3.5-turbo", 2, 10_000_006),
        ("claude-3-haiku", 1, 2),
    ]


def test_limits_and_balance_are_watched_as_the_ledger_has_them(operator, ledger, parts, database):
    operator(operator.customers.CreateAccount, pb.CreateAccountRequest(account_id="acme"))
    made = parts()
    watcher = Watcher(made.engine, Views(made.ledger, made.metering, made.plans), low_balance_nanos=USD)
    usage = {"provider": "openai", "model": "gpt-3.5-turbo", "cost_nanos": 1, "output_tokens": 0}
    ledger.debit("acme", 3 * USD, input_tokens=39_999, **usage)  # of 50 000 in a cycle
    assert watcher.look_at("acme") == 1
    ledger.debit("acme", USD, input_tokens=1, **usage)
    assert watcher.look_at("acme") == 2
    assert watcher.look_at("acme") == 0
    raised = database.rows("SELECT type, facts ->> 'used' FROM alerts ORDER BY created_at, type")
    assert raised == [("limit_50", "39999"), ("balance_low", None), ("limit_80", "40000")]
