"""Routes come from the contracts alone."""

from __future__ import annotations

import re

import pytest
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2

from gateway.bindings import Wire, path_regex, read_bindings
from gateway.render import DESCRIPTOR_SET, Address, configuration


@pytest.mark.parametrize(
    ("template", "matching", "others"),
    [
        (
            "/api/admin/accounts/{account_id}/credits",
            ["/api/admin/accounts/acme/credits", "/api/admin/accounts/a.b:c/credits"],
            ["/api/admin/accounts//credits", "/api/admin/accounts/a/b/credits", "/api/admin/accounts/a/credits/x"],
        ),
        (
            "/v1beta/models/{model}:generateContent",
            ["/v1beta/models/gemini-1.5-pro:generateContent"],
            ["/v1beta/models/gemini-1x5-pro:streamGenerateContent", "/v1beta/models/gemini:generateContentX"],
        ),
        ("/v1/models/{model=**}", ["/v1/models/meta/llama-3"], ["/v1/model/x", "/v2/models/x"]),
        ("/v1/{name=shelves/*/books/*}:read", ["/v1/shelves/1/books/2:read"], ["/v1/shelves/1/books:read"]),
        ("/a.b/{plan.plan_id}", ["/a.b/x"], ["/aXb/x"]),
    ],
)
def test_template_matches_what_google_api_http_says(template, matching, others):
    pattern = re.compile(path_regex(template))
    assert all(pattern.fullmatch(path) for path in matching)
    assert not any(pattern.fullmatch(path) for path in others)


def test_template_without_variables_is_a_plain_path():
    assert path_regex("/api/credits/balance") is None


def contracts(*paths, package="tollkeeper.ledger.v1"):
    file = descriptor_pb2.FileDescriptorProto(name="x.proto", package=package)
    service = file.service.add(name="XService")
    for number, path in enumerate(paths):
        method = service.method.add(name=f"M{number}", input_type=".x.A", output_type=".x.A")
        method.options.Extensions[annotations_pb2.http].get = path
    return descriptor_pb2.FileDescriptorSet(file=[file]).SerializeToString()


def test_two_rpcs_on_one_path_are_refused():
    with pytest.raises(ValueError, match=r"/b/\{y\} is claimed by tollkeeper.ledger.v1.XService.M0 and .*M1"):
        read_bindings(contracts("/b/{x}", "/b/{y}"))


def test_annotated_rpc_of_a_foreign_package_is_refused():
    with pytest.raises(ValueError, match=r"no service of ours owns the package other\.v1"):
        read_bindings(contracts("/b", package="other.v1"))


def test_additional_bindings_are_routes_too():
    bindings = read_bindings(DESCRIPTOR_SET.read_bytes())
    assert {b.template for b in bindings if b.rpc.endswith(".GetTier")} == {
        "/api/credits/tiers/{tier}",
        "/api/credits/tier-details/{tier}",
    }


def test_each_path_speaks_the_dialect_of_its_sdk():
    wires = {b.template: b.wire for b in read_bindings(DESCRIPTOR_SET.read_bytes())}
    assert wires["/v1/chat/completions"] is Wire.OPENAI
    assert wires["/v1/messages"] is Wire.ANTHROPIC
    assert wires["/v1beta/models/{model}:generateContent"] is Wire.GEMINI
    assert wires["/api/ai/{provider}"] is Wire.API


def test_rpc_speaks_one_dialect_on_all_its_paths():
    file = descriptor_pb2.FileDescriptorProto(name="x.proto", package="tollkeeper.proxy.v1")
    rpc = file.service.add(name="XService").method.add(name="M", input_type=".x.A", output_type=".x.A")
    rule = rpc.options.Extensions[annotations_pb2.http]
    rule.post = "/v1beta/models/{model}:x"
    rule.additional_bindings.add().post = "/v1/models/{model}:x"
    bindings = read_bindings(descriptor_pb2.FileDescriptorSet(file=[file]).SerializeToString())
    assert [binding.wire for binding in bindings] == [Wire.GEMINI, Wire.GEMINI]


def test_service_without_an_address_is_refused():
    address = Address("127.0.0.1", 1)
    with pytest.raises(ValueError, match="no address for pricing, subscriptions"):
        configuration(listen=address, admin=address, services={"ledger": [address], "proxy": [address]})
