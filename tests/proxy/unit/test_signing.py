"""AWS signatures, checked by a verifier that shares no code with the signer."""

from urllib.parse import urlsplit

import pytest

from deploy.local.sandbox.provider import sigv4
from services.proxy.upstream import path_segment
from services.proxy.upstream.signing import AwsKey, signed

KEY = AwsKey("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "", "eu-west-1")
BODY = '{"messages": "ä"}'.encode()
MODELS = [
    "amazon.nova-lite",
    "anthropic.claude-3-5-sonnet-20241022-v2:0",
    "arn:aws:bedrock:eu-west-1:123456789012:inference-profile/eu.anthropic.claude",
    "a model with ~ blanks & ä + % signs",
]


def verified(headers, url, body=BODY, secret=KEY.secret_access_key):
    parts = urlsplit(url)
    seen = dict(headers) | {"host": parts.netloc, "content-type": "application/json"}
    signature = sigv4.read(seen["authorization"])
    return sigv4.is_signed_by(
        signature, secret, method="POST", raw_path=parts.path, query=parts.query, headers=seen, body=body
    )


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("base", ["https://bedrock-runtime.eu-west-1.amazonaws.com", "http://127.0.0.1:9100/bedrock"])
def test_signature_is_of_the_path_as_it_is_sent(base, model):
    url = f"{base}/model/{path_segment(model)}/converse-stream"
    assert verified(signed(KEY, url, "application/json", BODY), url)


def test_signature_is_of_this_request_alone():
    url = "https://bedrock-runtime.eu-west-1.amazonaws.com/model/a%3A0/converse"
    headers = signed(KEY, url, "application/json", BODY)
    assert verified(headers, url)
    assert not verified(headers, url, body=BODY + b" ")
    assert not verified(headers, url.replace("a%3A0", "a%3A1"))
    assert not verified(headers, url.replace("eu-west-1", "eu-west-2"))
    assert not verified(headers, url, secret="another")


def test_scope_names_key_region_and_service():
    headers = dict(signed(KEY, "https://a.test/model/a/converse", "application/json", BODY))
    read = sigv4.read(headers["authorization"])
    assert (read.access_key, read.region, read.service) == ("AKIDEXAMPLE", "eu-west-1", "bedrock")
    assert set(read.signed_headers) == {"content-type", "host", "x-amz-date"}
    assert set(headers) == {"authorization", "x-amz-date"}


def test_session_token_is_sent_and_signed():
    url = "https://a.test/model/a/converse"
    headers = signed(AwsKey("i", KEY.secret_access_key, "token/+=", "us-east-1"), url, "application/json", BODY)
    assert dict(headers)["x-amz-security-token"] == "token/+="
    assert "x-amz-security-token" in sigv4.read(dict(headers)["authorization"]).signed_headers
    assert verified(headers, url)
