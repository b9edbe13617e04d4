"""Owns the other services as pricing sees them: the ledger's usage and credits, subscriptions' customers.

They are only asked for operators' reports, never to price a call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import grpc
from tollkeeper.ledger.v1 import ledger_service_pb2 as ledger_pb
from tollkeeper.ledger.v1 import resources_pb2 as ledger_resources_pb
from tollkeeper.ledger.v1.ledger_service_pb2_grpc import AccountServiceStub, JournalServiceStub
from tollkeeper.subscriptions.v1 import operator_service_pb2 as customers_pb
from tollkeeper.subscriptions.v1.operator_service_pb2_grpc import CustomerServiceStub

from services.kit.errors import RemoteError
from services.kit.times import timestamp
from services.pricing.errors import AccountNotFound
from services.pricing.margins import AccountMonth, Credit, Customer, Month
from services.pricing.repricing import BookedCall
from services.rating import COMPONENTS, USAGE_FIELDS, Usage

_PAGE_SIZE = 1000
# Accounts that the ledger is asked about at once: it looks through all their entries of the month.
_SUMMED_AT_ONCE = 200
_GRANT, _PURCHASE = "subscription_grant", "credit_purchase"

# Where a usage record names a component, the field of Usage that counts it.
_FIELD_OF = {
    component: field
    for component in COMPONENTS
    for field in (f"{component}_tokens", f"{component}s")
    if field in USAGE_FIELDS
} | {"second": "milliseconds"}


class LedgerClient:
    """The ledger. Methods raise grpc.RpcError where it does not answer, and what their docstrings say."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._accounts = AccountServiceStub(channel)
        self._journal = JournalServiceStub(channel)

    def account_ids(self) -> Iterator[str]:
        """Every account, by id; a page of them is held at once."""
        for page in _pages(self._accounts.ListAccounts, ledger_pb.ListAccountsRequest()):
            for account in page.accounts:
                yield account.account_id

    def calls(self, account_id: str, start: datetime, end: datetime) -> Iterator[list[BookedCall]]:
        """An account's calls booked in `[start, end)`, page by page. Raises AccountNotFound."""
        request = ledger_pb.ListUsageRequest(account_id=account_id, from_time=timestamp(start), to_time=timestamp(end))
        try:
            for page in _pages(self._journal.ListUsage, request):
                yield [booked_call(record) for record in page.records]
        except grpc.RpcError as error:
            if _is_not_found(error):
                raise AccountNotFound(f"the ledger has no account {account_id}", account_id=account_id) from error
            raise

    def months_of(self, account_ids: Sequence[str], month: Month) -> dict[str, AccountMonth]:
        """The months of these accounts, of those that have anything in them."""
        found = {}
        for start in range(0, len(account_ids), _SUMMED_AT_ONCE):
            request = ledger_pb.SummarizeAccountsRequest(
                account_ids=account_ids[start : start + _SUMMED_AT_ONCE],
                types=(_GRANT, _PURCHASE),
                from_time=timestamp(month.start),
                to_time=timestamp(month.end),
            )
            for account in self._journal.SummarizeAccounts(request).accounts:
                found[account.account_id] = AccountMonth(
                    grants=_credits(account, _GRANT),
                    purchases=_credits(account, _PURCHASE),
                    api_cost_nanos=account.cost_nanos,
                )
        return found


def _credits(account: ledger_pb.AccountSummary, kind: str) -> tuple[Credit, ...]:
    return tuple(
        Credit(credit.amount_nanos, credit.refunded_nanos) for credit in account.credits if credit.type == kind
    )


class SubscriptionsClient:
    """Subscriptions. Methods raise grpc.RpcError where it does not answer."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._customers = CustomerServiceStub(channel)

    def pages(self) -> Iterator[list[Customer]]:
        """Every customer, page by page, by account id."""
        for page in _pages(self._customers.ListCustomers, customers_pb.ListCustomersRequest()):
            yield [
                Customer(
                    account_id=account.account_id,
                    plan_id=account.plan,
                    plan_version=account.plan_version,
                    status=account.status,
                    created_at=account.created_at.ToDatetime(UTC),
                    cycle_start=account.cycle_start.ToDatetime(UTC),
                )
                for account in page.accounts
            ]


def booked_call(record: ledger_resources_pb.UsageRecord) -> BookedCall:
    """A usage record as a call to be priced; without usage where it counts what is no component that is known."""
    units = dict(record.units)
    one_hour = units.get("cache_write_1h", 0)
    counts = {
        "input_tokens": record.input_tokens,
        "output_tokens": record.output_tokens,
        "cache_read_tokens": record.cached_tokens,
        # All that was written to caches stands in one count; what was for an hour is told apart by its unit.
        "cache_write_5m_tokens": max(0, record.cache_write_tokens - one_hour),
        "reasoning_tokens": record.reasoning_tokens,
    }
    known = units.keys() <= _FIELD_OF.keys()
    if known:
        counts |= {_FIELD_OF[component]: count for component, count in units.items()}
    return BookedCall(
        provider=record.provider,
        model=record.model,
        service_tier=record.service_tier,
        usage=Usage(**counts) if known else None,
        cost_nanos=record.cost_nanos,
        created_at=record.created_at.ToDatetime(UTC),
    )


def _pages(call: Any, request: Any) -> Iterator[Any]:
    """The answers of a list RPC, page after page."""
    request.page_size = _PAGE_SIZE
    while True:
        page = call(request)
        yield page
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def _is_not_found(error: grpc.RpcError) -> bool:
    return RemoteError.from_rpc(error).code is grpc.StatusCode.NOT_FOUND
