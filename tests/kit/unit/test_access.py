# ruff: noqa: N802, ARG002 (gRPC names methods)
"""Owns the tests of access rules: what is declared, what must be, and what a servicer leaves undone."""

import kit_echo_pb2 as pb
import kit_echo_pb2_grpc as grpc_modules
import pytest
from kit_echo import AioEcho, SyncEcho
from tollkeeper.type.v1 import access_pb2

from services.kit.access import RegistrationError, declared_role, rules, service_descriptor, unimplemented_methods
from services.kit.identity import Role
from services.kit.serving import AioServer, SyncServer

ECHO = pb.DESCRIPTOR.services_by_name["EchoService"]
FOREIGN = pb.DESCRIPTOR.services_by_name["ForeignService"]
CHECK = "/kittest.v1.ForeignService/Check"


class AioForeign(grpc_modules.ForeignServiceServicer):
    async def Check(self, request, context):
        return pb.EchoResponse(text=request.text)


def test_roles_are_the_contracts_access_levels():
    for role in Role:
        assert access_pb2.Access.Value(f"ACCESS_{role.name}") == role
    assert len(access_pb2.Access.keys()) == len(Role) + 1


def test_rules_are_read_from_the_contract():
    found = rules(ECHO)
    assert set(found) == {method.name for method in ECHO.methods}
    assert (found["Public"].role, found["Service"].role) == (Role.PUBLIC, Role.SERVICE)
    assert found["Account"].names_account
    assert not found["Plain"].names_account
    assert found["Up"].path == "/kittest.v1.EchoService/Up"


def test_an_rpc_without_the_option_does_not_register(settings):
    assert declared_role(FOREIGN.methods_by_name["Check"]) is None
    with pytest.raises(RegistrationError, match=f"{CHECK} declares no access"):
        AioServer(settings).register(grpc_modules.add_ForeignServiceServicer_to_server, AioForeign())


@pytest.mark.parametrize("role", [Role.SERVICE, access_pb2.ACCESS_SERVICE])
def test_a_third_partys_contract_gets_its_access_at_registration(settings, role):
    server = AioServer(settings)
    server.register(grpc_modules.add_ForeignServiceServicer_to_server, AioForeign(), access_overrides={CHECK: role})
    assert rules(FOREIGN, {CHECK: role})["Check"].role is Role.SERVICE


@pytest.mark.parametrize(
    ("service", "overrides", "complaint"),
    [
        (ECHO, {"/kittest.v1.EchoService/Admin": Role.PUBLIC}, "cannot be overridden"),
        (FOREIGN, {CHECK: Role.PUBLIC, "/kittest.v1.ForeignService/Chekc": Role.PUBLIC}, "name no RPC.*Chekc"),
        (FOREIGN, {CHECK: 0}, "0 is no role"),
        (FOREIGN, {CHECK: 9}, "9 is no role"),
    ],
)
def test_a_wrong_override_is_refused(service, overrides, complaint):
    with pytest.raises(RegistrationError, match=complaint):
        rules(service, overrides)


def test_a_service_whose_contract_is_not_loaded_is_refused():
    with pytest.raises(RegistrationError, match="no descriptor"):
        service_descriptor("nobody.v1.Nothing")


def test_what_a_servicer_leaves_undone_is_listed():
    later = ["Later", "LaterDown", "LaterUp"]
    assert unimplemented_methods(AioEcho(), ECHO) == later
    assert unimplemented_methods(SyncEcho, ECHO) == later
    assert unimplemented_methods(grpc_modules.EchoServiceServicer, ECHO) == [m.name for m in ECHO.methods]
    assert unimplemented_methods(AioForeign, FOREIGN) == []


def test_methods_of_the_wrong_colour_do_not_register(settings):
    add = grpc_modules.add_EchoServiceServicer_to_server
    with pytest.raises(RegistrationError, match="is async, but the server is sync"):
        SyncServer(settings).register(add, AioEcho())
    with pytest.raises(RegistrationError, match="is not async, but the server is aio"):
        AioServer(settings).register(add, SyncEcho())


def test_what_registers_nothing_is_refused(settings):
    with pytest.raises(RegistrationError, match="registers no service"):
        AioServer(settings).register(lambda _servicer, _server: None, AioEcho())
