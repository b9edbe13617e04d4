"""Owns CustomerService on the wire."""

from __future__ import annotations

import re
from typing import Any

from tollkeeper.subscriptions.v1 import operator_service_pb2 as pb
from tollkeeper.subscriptions.v1 import resources_pb2 as resources
from tollkeeper.subscriptions.v1.operator_service_pb2_grpc import CustomerServiceServicer

from services.kit.paging import page_position, page_token
from services.kit.replays import tell_replayed
from services.kit.validation import Violations
from services.subscriptions.clock import Clock, utc_now
from services.subscriptions.model.account import DEFAULT_PLAN, STATUSES, AccountWords
from services.subscriptions.reports.messages import account_stats
from services.subscriptions.reports.service import Reports
from services.subscriptions.service.customers import Customers, Done
from services.subscriptions.servicer.messages import customer_account
from services.subscriptions.servicer.requests import account_named

_MAX_NAME_CHARS = 200
_MAX_EMAIL_CHARS = 254  # RFC 5321, 4.5.3.1.3, less the angle brackets
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+")
_DEFAULT_PAGE_SIZE = 100


class CustomerServicer(CustomerServiceServicer):
    """Customers' accounts, for operators."""

    def __init__(self, customers: Customers, reports: Reports, *, clock: Clock = utc_now) -> None:
        self._customers = customers
        self._reports = reports
        self._clock = clock

    def CreateAccount(self, request: pb.CreateAccountRequest, context: Any) -> resources.CustomerAccount:
        """See the contract."""
        v = Violations()
        words = AccountWords(
            account_id=v.identifier("account_id", request.account_id),
            display_name=v.text("display_name", request.display_name, max_length=_MAX_NAME_CHARS),
            email=_email(v, "email", request.email),
            plan_id=v.identifier("plan", request.plan, required=False) or DEFAULT_PLAN,
        )
        v.identifier("request_id", request.request_id, required=False)
        v.raise_if_any()
        return self._answer(self._customers.create(words), context)

    def GetCustomer(self, request: pb.GetCustomerRequest, context: Any) -> resources.CustomerAccount:
        """See the contract."""
        return customer_account(self._customers.get(account_named(request)), self._clock())

    def ListCustomers(self, request: pb.ListCustomersRequest, context: Any) -> pb.ListCustomersResponse:
        """See the contract."""
        v = Violations()
        plan_id = v.identifier("plan", request.plan, required=False)
        status = v.one_of("status", request.status, STATUSES) if request.status else ""
        page_size = v.page_size("page_size", request.page_size, default=_DEFAULT_PAGE_SIZE)
        position = page_position(v, request, str)
        v.raise_if_any()
        page, last = self._customers.list(
            plan_id=plan_id, status=status, after=str(position[0]) if position else "", page_size=page_size
        )
        now = self._clock()
        return pb.ListCustomersResponse(
            accounts=[customer_account(account, now) for account in page],
            next_page_token=page_token(request, last) if last else "",
        )

    def GetAccountStats(self, request: pb.GetAccountStatsRequest, context: Any) -> pb.AccountStats:
        """See the contract."""
        return account_stats(self._reports.account_figures(account_named(request)), self._clock())

    def SetAccountPlan(self, request: pb.SetAccountPlanRequest, context: Any) -> resources.CustomerAccount:
        """See the contract."""
        v = Violations()
        account_id = v.identifier("account_id", request.account_id)
        plan_id = v.identifier("plan", request.plan)
        request_id = v.identifier("request_id", request.request_id)
        v.raise_if_any()
        return self._answer(self._customers.set_plan(account_id, plan_id, request_id), context)

    def _answer(self, done: Done, context: Any) -> resources.CustomerAccount:
        if done.replayed:
            tell_replayed(context)
        return customer_account(done.account, self._clock())


def _email(violations: Violations, field: str, address: str) -> str:
    """Nothing, or something on both sides of an @. Whether it is somebody's address, only a letter can tell."""
    violations.text(field, address, max_length=_MAX_EMAIL_CHARS)
    if address and len(address) <= _MAX_EMAIL_CHARS and not _EMAIL.fullmatch(address):
        violations.add(field, "must be an e-mail address")
    return address
