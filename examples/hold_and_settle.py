"""Over gRPC: money for work of your own is set aside before it is done and settled at what it came to, in batches."""

import os
import secrets

import grpc
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb
from tollkeeper.ledger.v1.ledger_service_pb2_grpc import AccountServiceStub, LedgerServiceStub

channel = grpc.insecure_channel(os.environ["TOLLKEEPER_LEDGER_ADDR"])
token = (("authorization", "Bearer " + os.environ["TOLLKEEPER_SERVICE_TOKEN"]),)
ledger, accounts = LedgerServiceStub(channel), AccountServiceStub(channel)
account = f"example-{secrets.token_hex(4)}"


def apply(**operation):
    """One operation as a batch of its own; many may go in one. Each has its own result, one that fails says why."""
    (result,) = ledger.Apply(pb.ApplyRequest(operations=[pb.Operation(**operation)]), metadata=token).results
    return result


apply(open_account=pb.OpenAccountRequest(account_id=account))
credit = pb.CreditAccountRequest(account_id=account, amount_nanos=10**9, source="purchase", request_id="first")
apply(credit=credit)

job = secrets.token_hex(8)
hold = apply(hold=pb.CreateHoldRequest(account_id=account, hold_id=job, amount_nanos=400_000_000))
assert hold.WhichOneof("kind") == "hold", hold
# … the work is done here …
settle = pb.SettleHoldRequest(account_id=account, hold_id=job, amount_nanos=250_000_000)
apply(settle=settle)
apply(settle=settle)  # no answer came? Ask again: it is settled once

balance = accounts.GetBalance(pb.GetBalanceRequest(account_id=account), metadata=token)
print(f"{balance.available_nanos} nanos are left, {balance.held_nanos} held, {balance.spent_nanos} spent")
assert (balance.available_nanos, balance.held_nanos, balance.spent_nanos) == (750_000_000, 0, 250_000_000)

refused = apply(hold=pb.CreateHoldRequest(account_id=account, hold_id="too-much", amount_nanos=10**12))
print("refused:", refused.error.message)
