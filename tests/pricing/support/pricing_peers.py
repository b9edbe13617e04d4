# ruff: noqa: N802 (gRPC names methods)
"""Owns a ledger and a subscriptions service in memory, served over gRPC: as much of each as pricing asks."""

import threading
from concurrent import futures
from contextlib import contextmanager

import grpc
from tollkeeper.ledger.v1 import ledger_service_pb2 as ledger_pb
from tollkeeper.ledger.v1 import ledger_service_pb2_grpc as ledger_grpc
from tollkeeper.ledger.v1.resources_pb2 import Account
from tollkeeper.subscriptions.v1 import operator_service_pb2 as customers_pb
from tollkeeper.subscriptions.v1 import operator_service_pb2_grpc as customers_grpc

# So small that tests see more than one page.
PAGE = 2


def _page(entries, request, within):
    start = int(request.page_token or 0)
    end = start + min(request.page_size, PAGE)
    return {within: entries[start:end], "next_page_token": str(end) if end < len(entries) else ""}


def _within(entry, request):
    moment = entry.created_at.ToNanoseconds()
    return request.from_time.ToNanoseconds() <= moment < request.to_time.ToNanoseconds()


class Ledger(ledger_grpc.AccountServiceServicer, ledger_grpc.JournalServiceServicer):
    """Usage records and transactions by account."""

    def __init__(self):
        self.records = {}
        self.transactions = {}
        self.pages = 0
        self.sums = 0
        self.tokens = set()
        self.block = threading.Event()
        self.block.set()

    def _known(self, account_id, context):
        self.tokens.add(dict(context.invocation_metadata()).get("authorization"))
        self.block.wait(10)
        if account_id not in self.records and account_id not in self.transactions:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such account")

    def ListAccounts(self, request, _context):
        names = sorted({*self.records, *self.transactions})
        accounts = [Account(account_id=name) for name in names]
        return ledger_pb.ListAccountsResponse(**_page(accounts, request, "accounts"))

    def ListUsage(self, request, context):
        self._known(request.account_id, context)
        self.pages += 1
        found = [one for one in self.records.get(request.account_id, ()) if _within(one, request)]
        return ledger_pb.ListUsageResponse(**_page(found, request, "records"))

    def SummarizeAccounts(self, request, context):
        self.tokens.add(dict(context.invocation_metadata()).get("authorization"))
        self.block.wait(10)
        self.sums += 1
        answer = ledger_pb.SummarizeAccountsResponse()
        for name in request.account_ids:
            calls = [one for one in self.records.get(name, ()) if _within(one, request)]
            given = [one for one in self.transactions.get(name, ()) if _within(one, request)]
            told = answer.accounts.add(account_id=name, cost_nanos=sum(one.cost_nanos for one in calls))
            for one in given:
                if one.type in request.types:
                    told.credits.add(type=one.type, amount_nanos=one.amount_nanos, refunded_nanos=one.refunded_nanos)
        return answer


class Subscriptions(customers_grpc.CustomerServiceServicer):
    """Customers."""

    def __init__(self):
        self.customers = []

    def ListCustomers(self, request, _context):
        return customers_pb.ListCustomersResponse(**_page(self.customers, request, "accounts"))


@contextmanager
def served(ledger, subscriptions):
    """Serve both; the address."""
    server = grpc.server(futures.ThreadPoolExecutor(16))
    ledger_grpc.add_AccountServiceServicer_to_server(ledger, server)
    ledger_grpc.add_JournalServiceServicer_to_server(ledger, server)
    customers_grpc.add_CustomerServiceServicer_to_server(subscriptions, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        ledger.block.set()
        server.stop(None).wait()
