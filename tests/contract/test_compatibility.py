"""Clients of the last release and servers of this one understand each other, and the reverse."""

import gzip
import subprocess
import sys
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor
from tollkeeper.ledger.v1 import ledger_service_pb2, resources_pb2

from docs.pages.status import contract_services
from docs.reference import import_all
from protos import lint
from protos.build import ROOT, write_descriptor_set
from protos.release import RELEASED

NUMBERS = {
    FieldDescriptor.CPPTYPE_INT32: 7,
    FieldDescriptor.CPPTYPE_INT64: 7,
    FieldDescriptor.CPPTYPE_UINT32: 7,
    FieldDescriptor.CPPTYPE_UINT64: 7,
    FieldDescriptor.CPPTYPE_DOUBLE: 7.5,
    FieldDescriptor.CPPTYPE_FLOAT: 7.5,
    FieldDescriptor.CPPTYPE_BOOL: True,
    FieldDescriptor.CPPTYPE_ENUM: 1,
}


@pytest.fixture(scope="module")
def released():
    """The messages of the last release, by name, as a client of then has them; None for one that is new since."""
    files = descriptor_pb2.FileDescriptorSet.FromString(gzip.decompress(RELEASED.read_bytes()))
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    known = {f"{file.package}.{message.name}" for file in files.file for message in file.message_type}
    return lambda name: message_factory.GetMessageClass(pool.FindMessageTypeByName(name)) if name in known else None


def filled(message, depth=3):
    """The message with every field set that can be."""
    for field in message.DESCRIPTOR.fields:
        is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
        if is_map or (field.containing_oneof is not None and message.WhichOneof(field.containing_oneof.name)):
            continue
        if field.message_type is not None:
            if depth == 0 or field.message_type.file.package == "google.protobuf":
                continue
            inner = getattr(message, field.name)
            filled(inner.add() if field.is_repeated else inner, depth - 1)
            if not field.is_repeated:
                inner.SetInParent()
            continue
        text = b"text" if field.type == FieldDescriptor.TYPE_BYTES else "text"
        value = NUMBERS.get(field.cpp_type, text)
        if field.is_repeated:
            getattr(message, field.name).append(value)
        else:
            setattr(message, field.name, value)
    return message


def messages(released):
    """Every message that goes over the wire, of this release, which the last one had: no old client sends another."""
    import_all()
    return sorted(
        {
            message.full_name: message
            for service, _ in contract_services()
            for method in service.methods
            for message in (method.input_type, method.output_type)
            if message.full_name.startswith("tollkeeper.") and released(message.full_name)
        }.items()
    )


def test_what_an_old_client_sends_is_read_whole_by_a_new_server(released):
    found = messages(released)
    assert len(found) > 150
    for name, descriptor in found:
        old = filled(released(name)())
        new = message_factory.GetMessageClass(descriptor).FromString(old.SerializeToString())
        assert new.SerializeToString(deterministic=True) == old.SerializeToString(deterministic=True), name
        assert {field.name for field, _ in old.ListFields()} == {field.name for field, _ in new.ListFields()}, name


def test_what_a_new_server_answers_is_read_by_an_old_client_and_nothing_of_it_is_lost(released):
    for name, descriptor in messages(released):
        new = filled(message_factory.GetMessageClass(descriptor)())
        old = released(name).FromString(new.SerializeToString())
        known = {field.name for field in old.DESCRIPTOR.fields}
        assert {field.name for field, _ in old.ListFields()} == {f.name for f, _ in new.ListFields()} & known, name
        assert type(new).FromString(old.SerializeToString()) == new, name


def test_old_client_and_new_server_talk(released):
    """Over a real connection, with the classes of then on one side and those of now on the other."""

    def balance(request, _context):
        return resources_pb2.Balance(account_id=request.account_id, available_nanos=5)

    handler = grpc.unary_unary_rpc_method_handler(
        balance,
        request_deserializer=ledger_service_pb2.GetBalanceRequest.FromString,
        response_serializer=resources_pb2.Balance.SerializeToString,
    )
    server = grpc.server(futures.ThreadPoolExecutor(1))
    service = "tollkeeper.ledger.v1.AccountService"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"GetBalance": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    request_class, answer_class = (
        released(f"tollkeeper.ledger.v1.{name}") for name in ("GetBalanceRequest", "Balance")
    )
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary(
                f"/{service}/GetBalance",
                request_serializer=request_class.SerializeToString,
                response_deserializer=answer_class.FromString,
            )
            answer = call(request_class(account_id="acme"), timeout=10)
    finally:
        server.stop(None)
    assert (answer.account_id, answer.available_nanos) == ("acme", 5)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("int64 available_nanos = 2;", "int64 available_nanos = 200;"),
        ("int64 available_nanos = 2;", "string available_nanos = 2;"),
        ("int64 available_nanos = 2;", ""),
        ("int64 available_nanos = 2;", "int64 available = 2;"),
    ],
    ids=["another number", "another type", "gone", "another name"],
)
def test_change_that_would_break_a_client_is_refused(tmp_path, before, after):
    image = tmp_path / "changed.binpb"
    write_descriptor_set(image)
    files = descriptor_pb2.FileDescriptorSet.FromString(image.read_bytes())
    (file,) = [file for file in files.file if file.name == "tollkeeper/ledger/v1/resources.proto"]
    (balance,) = [message for message in file.message_type if message.name == "Balance"]
    (field,) = [field for field in balance.field if f"{field.name} = {field.number};" in before]
    if not after:
        balance.field.remove(field)
    else:
        kind, name, number = after.rstrip(";").replace(" =", "").split()
        field.name, field.number = name, int(number)
        field.type = field.TYPE_STRING if kind == "string" else field.TYPE_INT64
        field.json_name = "available" if name == "available" else "availableNanos"
    image.write_bytes(files.SerializeToString())
    buf = Path(sys.executable).parent / "buf"
    words = [buf, "breaking", image, "--against", RELEASED, "--config", ROOT / "buf.yaml"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "available" in done.stdout


def test_contracts_as_they_are_break_no_client():
    assert lint.main() == 0
