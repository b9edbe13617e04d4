"""Owns the way from the model's operations, as tests draw them, to the contract's requests."""

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb
from tollkeeper.ledger.v1 import resources_pb2 as resources

from services.ledger.model import operations as asked


def stamp(moment):
    made = Timestamp()
    made.FromDatetime(moment)
    return made


def _status(operation):
    words = {"account_id": operation.account_id, "request_id": operation.request_id}
    if operation.status == "open":
        return {"resume": pb.ResumeAccountRequest(**words)}
    return {"suspend": pb.SuspendAccountRequest(**words, reason=operation.why)}


def _update(operation):
    paths, account = [], resources.Account(account_id=operation.account_id)
    if operation.display_name is not None:
        account.display_name = operation.display_name
        paths.append("display_name")
    if operation.overdraft is not None:
        account.overdraft.kind, account.overdraft.limit_nanos = operation.overdraft
        paths.append("overdraft")
    if operation.cycle_anchor is not None:
        account.cycle_anchor.CopyFrom(stamp(operation.cycle_anchor))
        paths.append("cycle_anchor")
    request_id, mask = operation.request_id, FieldMask(paths=paths)
    return {"update_account": pb.UpdateAccountRequest(account=account, update_mask=mask, request_id=request_id)}


def _undo(operation):
    words = {
        "account_id": operation.account_id,
        "transaction_id": operation.transaction_id,
        "amount_nanos": operation.amount,
        "request_id": operation.request_id,
    }
    if operation.kind == "refund":
        return {"refund": pb.RefundTransactionRequest(**words)}
    return {"reverse": pb.ReverseTransactionRequest(**words)}


def _limit(operation):
    words = {
        name: getattr(operation, name)
        for name in ("account_id", "scope", "subject", "unit", "window", "amount", "mode", "request_id")
    }
    return {"set_limit": pb.SetLimitRequest(**words)}


def _deleted(operation):
    name = f"{operation.scope}:{operation.subject}:{operation.unit}:{operation.window}"
    words = {"account_id": operation.account_id, "limit_id": name, "request_id": operation.request_id}
    return {"delete_limit": pb.DeleteLimitRequest(**words)}


_FORMS = {
    asked.Credit: lambda o: {
        "credit": pb.CreditAccountRequest(
            account_id=o.account_id, amount_nanos=o.amount, priority=o.priority, request_id=o.request_id
        )
    },
    asked.Adjust: lambda o: {
        "adjust": pb.AdjustBalanceRequest(
            account_id=o.account_id,
            amount_nanos=abs(o.amount),
            direction="credit" if o.amount > 0 else "debit",
            request_id=o.request_id,
        )
    },
    asked.Debit: lambda o: {
        "debit": pb.DebitAccountRequest(
            account_id=o.account_id, amount_nanos=o.amount, tokens=o.tokens, requests=o.requests, key_id=o.key_id,
            request_id=o.request_id,
        )
    },
    asked.CreateHold: lambda o: {
        "hold": pb.CreateHoldRequest(
            account_id=o.account_id, hold_id=o.hold_id, amount_nanos=o.amount, minimum_amount_nanos=o.minimum,
            tokens=o.tokens, minimum_tokens=o.minimum_tokens, requests=o.requests, key_id=o.key_id,
            ttl_seconds=o.ttl_seconds, billable=o.billable,
        )
    },
    asked.ExtendHold: lambda o: {
        "extend": pb.ExtendHoldRequest(
            account_id=o.account_id, hold_id=o.hold_id, additional_nanos=o.amount, additional_tokens=o.tokens,
            ttl_seconds=o.ttl_seconds, request_id=o.request_id,
        )
    },
    asked.SettleHold: lambda o: {
        "settle": pb.SettleHoldRequest(
            account_id=o.account_id, hold_id=o.hold_id, amount_nanos=o.amount, tokens=o.tokens
        )
    },
    asked.ReleaseHold: lambda o: {"release": pb.ReleaseHoldRequest(account_id=o.account_id, hold_id=o.hold_id)},
    asked.Undo: _undo,
    asked.SetLimit: _limit,
    asked.DeleteLimit: _deleted,
    asked.SetStatus: _status,
    asked.UpdateAccount: _update,
}  # fmt: skip


def batch_of(operations):
    """One linked group as a batch."""
    last = len(operations) - 1
    return pb.ApplyRequest(
        operations=[
            pb.Operation(**_FORMS[type(operation)](operation), linked=number < last)
            for number, operation in enumerate(operations)
        ]
    )
