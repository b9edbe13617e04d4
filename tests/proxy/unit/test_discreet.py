"""What names the operator in a provider's error reaches no customer; the rest of it does, as it came."""

import json

import pytest

from services.proxy.settings import ProxySettings
from services.proxy.upstream.configuration import providers_of
from services.proxy.upstream.discreet import discreet

KEY = "sk-proj-abcdefghijklmnopqrstuvwxyz012345"


@pytest.fixture(scope="module")
def shown():
    settings = ProxySettings(
        openai_base_url="http://llm-7.corp.example:8443/v1",
        openai_api_key=KEY,
        openai_headers={"OpenAI-Project": "billing-prod", "Anthropic-Version": "2023-06-01"},
    )
    hide = discreet(providers_of(settings)["openai"])
    return lambda message: json.loads(hide(json.dumps({"error": {"message": message}}).encode()))["error"]["message"]


@pytest.mark.parametrize(
    ("said", "hidden"),
    [
        ("Rate limit reached for gpt-4o in organization org-AbC123xyz on tokens per min", ["org-AbC123xyz"]),
        ("Project `proj_aBcDeF123` does not have access to model `gpt-9`", ["proj_aBcDeF123"]),
        ("would exceed the limit for your organization (6f8e1a2b-0c1d-4e5f-8a9b-0123456789ab)", ["6f8e1a2b"]),
        ("of the organization 'Acme Resale GmbH' is used up", ["Acme"]),
        ("Incorrect API key provided: sk-proj-********wxyz.", ["wxyz"]),
        ("the key ending in q4Zt may not", ["q4Zt"]),
        (f"bad credential {KEY}", [KEY[:20], KEY[-8:]]),
        ("Quota exceeded for consumer 'project_number:123456789012'", ["123456789012"]),
        ("see projects/gen-lang-client-0123456/quotas", ["gen-lang"]),
        ("bot@my-project.iam.gserviceaccount.com is disabled", ["bot@", "my-project"]),
        ("User: arn:aws:iam::123456789012:user/llm is throttled", ["123456789012", "user/llm"]),
        ("the header says billing-prod", ["billing-prod"]),
        ("upstream connect error: 10.20.30.40:8000, 192.168.1.7, 172.20.0.3", ["10.20", "192.168", "172.20"]),
        ("could not reach http://vllm-0.models.svc.cluster.local:8000/v1", ["vllm-0.models.svc"]),
        ("could not reach http://llm-7.corp.example:8443/v1", ["llm-7", "8443"]),
    ],
)
def test_what_names_the_operator_is_hidden(shown, said, hidden):
    found = shown(said)
    assert not [name for name in hidden if name in found], found
    assert "[hidden]" in found


@pytest.mark.parametrize(
    "said",
    [
        "Invalid value: 'user_name'. Supported values are: 'low', 'medium' and 'high'.",
        "This model's maximum context length is 128000 tokens. However, your messages resulted in 130512 tokens.",
        "Rate limit reached: Limit 30000, Used 29000, Requested 2000. Please try again in 2s.",
        "This request would exceed your organization's rate limit of 40,000 input tokens per minute. See 'docs'.",
        "messages.1.content.0.image.source.base64: invalid base64 data (version 1.2.3.4)",
        "The project is over its limit; an account of the team may ask for more.",
        'Überlänge: “text” \\ {"a": [1, 2]}',
        "anthropic-version: 2023-06-01 is not known",
        "The model `gpt-9` does not exist, see https://platform.openai.com/docs/models",
    ],
)
def test_what_says_what_is_wrong_stays_as_it_came(shown, said):
    assert shown(said) == said


@pytest.mark.parametrize(
    "piece", ["org", "project ", "a.", "*", "10.", "account '", "x" * 50 + "@", "arn:aws", "-_.", "a1", "org: a"]
)
@pytest.mark.timeout(30)
def test_long_words_are_looked_through_once(shown, piece):
    assert shown(piece * (1_000_000 // len(piece)))
