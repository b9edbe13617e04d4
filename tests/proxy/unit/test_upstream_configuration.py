"""Providers by configuration: what there is, and how what is wrong is told."""

import json

import pytest

from services.proxy.settings import ProxySettings
from services.proxy.upstream import ConfigurationError, path_segment
from services.proxy.upstream.answer import Meaning, meaning_of, retry_after_seconds
from services.proxy.upstream.configuration import Authentication, providers_of
from services.proxy.upstream.outgoing import passed_on
from services.proxy.upstream.signing import AwsKey

ARN = "arn:aws:bedrock:eu-west-1:123456789012:inference-profile/eu.anthropic.claude-3-haiku-v1:0"
FILE = """
[[providers]]
name = "mistral"
base_url = "https://mistral.test/v1/"
api_keys = ["m-1", "m-2"]
headers = { "X-Team" = "a" }
forms = ["chat", "embeddings"]
models = { large = "mistral-large-2411" }

[[providers]]
name = "local-one"
base_url = "http://127.0.0.1:8000/v1"
api_key_file = "keys.txt"
cap_field = "max_completion_tokens"
"""


def read(**settings):
    return providers_of(ProxySettings(**settings))


def wrong(**settings):
    with pytest.raises(ConfigurationError) as caught:
        read(**settings)
    return str(caught.value)


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "providers.toml"
        path.write_text(text)
        return path

    (tmp_path / "keys.txt").write_text("l-1\nl-2\n")
    return write


def test_provider_without_a_key_is_not_called():
    assert read() == {}
    assert set(read(openai_api_key="a", bedrock_access_key_id="i", bedrock_secret_access_key="s")) == {
        "openai",
        "bedrock",
    }


def test_each_provider_speaks_its_forms_with_its_own_authentication():
    found = read(
        openai_api_key="o1, o2,",
        anthropic_api_key="a",
        google_api_key="g",
        huggingface_api_key="h",
        bedrock_access_key_id="i1,i2",
        bedrock_secret_access_key="s1,s2",
        bedrock_session_token="t1,t2",
        bedrock_region="eu-west-1",
    )
    assert found["openai"].forms == {"chat", "responses", "embeddings"}
    assert found["openai"].keys == ("o1", "o2")
    assert found["openai"].cap_field == "max_completion_tokens"
    assert {found[name].cap_field for name in ("anthropic", "google", "huggingface")} == {"max_tokens"}
    anthropic, google = found["anthropic"].bases, found["google"].bases
    assert (anthropic["chat"].authentication, anthropic["messages"].authentication) == (
        Authentication.BEARER,
        Authentication.X_API_KEY,
    )
    assert anthropic["messages"].defaults == (("anthropic-version", "2023-06-01"),)
    assert google["gemini"].authentication is Authentication.X_GOOG_API_KEY
    assert google["gemini"].url == "https://generativelanguage.googleapis.com/v1beta"
    assert google["chat"].url == google["embeddings"].url == "https://generativelanguage.googleapis.com/v1beta/openai"
    assert found["huggingface"].forms == {"chat"}
    assert found["bedrock"].bases["converse"].url == "https://bedrock-runtime.eu-west-1.amazonaws.com"
    assert found["bedrock"].keys == (AwsKey("i1", "s1", "t1", "eu-west-1"), AwsKey("i2", "s2", "t2", "eu-west-1"))


def test_further_providers_come_from_a_file(file):
    found = read(providers_file=file(FILE))
    mistral, local = found["mistral"], found["local-one"]
    assert (mistral.forms, mistral.keys, mistral.headers) == (
        {"chat", "embeddings"},
        ("m-1", "m-2"),
        (("X-Team", "a"),),
    )
    assert mistral.bases["chat"].url == "https://mistral.test/v1"
    assert (local.forms, local.keys, local.cap_field) == ({"chat"}, ("l-1", "l-2"), "max_completion_tokens")


def test_models_that_a_provider_calls_otherwise_have_its_ids_and_others_their_names(file):
    models = {"claude-sonnet": "us.anthropic.claude-sonnet-4-20250514-v1:0", "mine": ARN}
    found = read(
        bedrock_access_key_id="i", bedrock_secret_access_key="s", bedrock_models=models, providers_file=file(FILE)
    )
    assert [found["bedrock"].id_of(name) for name in ("claude-sonnet", "mine", "claude-opus")] == [
        "us.anthropic.claude-sonnet-4-20250514-v1:0",
        ARN,
        "claude-opus",
    ]
    assert (found["mistral"].id_of("large"), found["mistral"].id_of("small")) == ("mistral-large-2411", "small")


def test_models_of_every_provider_are_read_from_its_setting(monkeypatch):
    for name in ("OPENAI", "ANTHROPIC", "GOOGLE", "HUGGINGFACE", "BEDROCK"):
        monkeypatch.setenv(f"TOLLKEEPER_PROXY_{name}_MODELS", json.dumps({"ours": f"{name}/theirs"}))
    keys = {f"{name}_api_key": "k" for name in ("openai", "anthropic", "google", "huggingface")}
    found = read(**keys, bedrock_access_key_id="i", bedrock_secret_access_key="s")
    assert {name: one.id_of("ours") for name, one in found.items()} == {
        name: f"{name.upper()}/theirs" for name in ("openai", "anthropic", "google", "huggingface", "bedrock")
    }


def test_no_secret_is_told_by_a_provider():
    found = read(openai_api_key="sk-o", bedrock_access_key_id="AKIA", bedrock_secret_access_key="sk-b")
    assert "sk-" not in repr(found)
    assert "AKIA" not in repr(found)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"openai_base_url": "ftp://a"}, "TOLLKEEPER_PROXY_OPENAI_BASE_URL: must be an address that begins with https"),
        ({"openai_base_url": "https://a:b"}, "TOLLKEEPER_PROXY_OPENAI_BASE_URL: must be a URL"),
        ({"google_native_base_url": "https://a/?key=1"}, "TOLLKEEPER_PROXY_GOOGLE_NATIVE_BASE_URL: must have no query"),
        ({"openai_api_key": "ok,not ok"}, "TOLLKEEPER_PROXY_OPENAI_API_KEY[1]: must be"),
        ({"openai_api_key": "schlüssel"}, "TOLLKEEPER_PROXY_OPENAI_API_KEY[0]: must be"),
        ({"openai_headers": {"Authorization": "x"}}, "TOLLKEEPER_PROXY_OPENAI_HEADERS: 'Authorization' is not one"),
        ({"anthropic_headers": {"a": "b\nc"}}, "TOLLKEEPER_PROXY_ANTHROPIC_HEADERS: 'a' is not a well-formed header"),
        ({"openai_models": {"": "gpt-4o"}}, "TOLLKEEPER_PROXY_OPENAI_MODELS: '' is no name of a model"),
        ({"google_models": {"a ": "b"}}, "TOLLKEEPER_PROXY_GOOGLE_MODELS: 'a ' is no name of a model"),
        ({"bedrock_models": {"a": ""}}, "TOLLKEEPER_PROXY_BEDROCK_MODELS: the id of 'a' must be 1 to 2048"),
        ({"anthropic_models": {"a": "b c"}}, "TOLLKEEPER_PROXY_ANTHROPIC_MODELS: the id of 'a' must be"),
        ({"huggingface_models": {"a": ".."}}, "TOLLKEEPER_PROXY_HUGGINGFACE_MODELS: the id of 'a' must be"),
        ({"bedrock_region": "a/b"}, "TOLLKEEPER_PROXY_BEDROCK_REGION: must be"),
        (
            {"bedrock_access_key_id": "a,b", "bedrock_secret_access_key": "s"},
            "TOLLKEEPER_PROXY_BEDROCK_SECRET_ACCESS_KEY: must be as many as bedrock_access_key_id has, 2",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_setting_is_told_by_its_name(settings, said):
    assert said in wrong(**settings)


def test_everything_that_is_wrong_is_told_at_once_and_no_secret_with_it():
    told = wrong(openai_api_key="sk secret", google_base_url="nowhere")
    assert "OPENAI_API_KEY" in told
    assert "GOOGLE_BASE_URL" in told
    assert "secret" not in told


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[providers]", "providers.toml: "),
        ('[[providers]]\nname = "x"', "providers[0].base_url: Field required"),
        ('[[providers]]\nname = "X y"\nbase_url = "https://a"', "providers[0].name: "),
        ('[[providers]]\nname = "x"\nbase_url = "a"', "providers[0].base_url: must be an address"),
        (
            '[[providers]]\nname = "x"\nbase_url = "https://a"',
            "providers[0]: must have either api_keys or api_key_file",
        ),
        ('[[providers]]\nname = "x"\nbase_url = "https://a"\nbase_uri = "b"', "providers[0].base_uri: "),
        ('[[providers]]\nname = "x"\nbase_url = "https://a"\napi_keys = ["a b"]', "providers[0].api_keys[0]: must be"),
        (
            '[[providers]]\nname = "x"\nbase_url = "https://a"\napi_keys = ["a"]\nforms = ["messages"]',
            "providers[0].forms[0]: ",
        ),
        (
            '[[providers]]\nname = "x"\nbase_url = "https://a"\napi_keys = ["a"]\nheaders = { Host = "b" }',
            "providers[0].headers: 'Host' is not one that may be set",
        ),
        (
            '[[providers]]\nname = "x"\nbase_url = "https://a"\napi_key_file = "none.txt"',
            "providers[0].api_key_file: ",
        ),
        (
            '[[providers]]\nname = "openai"\nbase_url = "https://a"\napi_keys = ["a"]',
            "providers[0].name: there is a provider 'openai' already",
        ),
        (
            '[[providers]]\nname = "x"\nbase_url = "https://a"\napi_keys = ["a"]\nmodels = { a = "" }',
            "providers[0].models: the id of 'a' must be 1 to 2048",
        ),
        (
            '[[providers]]\nname = "x"\nbase_url = "https://a"\napi_keys = ["a"]\nmodels = { a = 1 }',
            "providers[0].models.a: Input should be a valid string",
        ),
        (FILE + FILE, "providers[2].name: there is a provider 'mistral' already"),
    ],
    ids=str,
)
def test_wrong_file_is_told_by_its_field(file, text, said):
    assert said in wrong(providers_file=file(text))


def test_file_that_is_not_there_is_told(tmp_path):
    assert "none.toml: No such file" in wrong(providers_file=tmp_path / "none.toml")


# ---- what of a request is the client's


def test_client_cannot_replace_what_is_ours():
    ours = [
        "Authorization",
        "X-API-Key",
        "x-goog-api-key",
        "Host",
        "Content-Length",
        "content-type",
        "Transfer-Encoding",
        "Connection",
        "X-Amz-Security-Token",
        "OpenAI-Organization",
        "X-Team",
    ]
    told = passed_on([(name, "mine") for name in ours] + [("Anthropic-Beta", "b"), ("openai-beta", "c")], {"x-team"})
    assert told == (("Anthropic-Beta", "b"), ("openai-beta", "c"))


@pytest.mark.parametrize("value", ["a\r\nhost: b", "a\nb", "ä", "", " a", "a" * 10_000], ids=repr)
def test_client_header_that_is_none_is_left_out(value):
    assert passed_on([("anthropic-beta", value[:9000])], frozenset()) == ()


def test_path_segment_is_encoded_whole():
    assert path_segment("anthropic.claude-3:0") == "anthropic.claude-3%3A0"
    assert path_segment("arn:aws:bedrock:x:1:profile/é") == "arn%3Aaws%3Abedrock%3Ax%3A1%3Aprofile%2F%C3%A9"
    for text in ("", ".", ".."):
        with pytest.raises(ValueError, match="no segment"):
            path_segment(text)


# ---- what a refusal says


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7),
        ("0.5", 0.5),
        (" 0 ", 0),
        ("-3", 0),
        ("Thu, 01 Jan 2026 00:00:30 GMT", 30),
        ("Wed, 31 Dec 2025 23:59:00 GMT", 0),
        ("", None),
        ("soon", None),
        ("nan", None),
        ("inf", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header, seconds):
    assert retry_after_seconds(header, now=1767225600) == seconds


GOOGLE = b'{"error":{"details":[{"reason":"%s"}],"message":"API_KEY_INVALID"}}'


@pytest.mark.parametrize(
    ("status", "body", "exception", "meaning"),
    [
        (400, b"", "", Meaning.FINAL),
        (401, b"", "", Meaning.REJECTED),
        (402, b"", "", Meaning.REJECTED),
        (403, b"", "", Meaning.DENIED),
        (404, b"", "", Meaning.FINAL),
        (408, b"", "", Meaning.BUSY),
        (422, b"", "", Meaning.FINAL),
        (429, b"", "", Meaning.BUSY),
        (500, b"", "", Meaning.FAILED),
        (501, b"", "", Meaning.FINAL),
        (503, b"", "", Meaning.FAILED),
        (529, b"", "", Meaning.FAILED),
        (400, GOOGLE % b"API_KEY_INVALID", "", Meaning.REJECTED),
        (400, b"[" + GOOGLE % b"API_KEY_INVALID" + b"]", "", Meaning.REJECTED),
        (400, GOOGLE % b"FIELD_INVALID", "", Meaning.FINAL),
        (400, b'{"error":{"message":"insufficient_quota API_KEY_INVALID"}}', "", Meaning.FINAL),
        (400, b"[[[[", "", Meaning.FINAL),
        (400, b"[]", "", Meaning.FINAL),
        (403, b"", "AccessDeniedException", Meaning.DENIED),
        (403, b"", "InvalidSignatureException", Meaning.REJECTED),
        (400, b"", "UnrecognizedClientException:http://internal/", Meaning.REJECTED),
        (429, b'{"error":{"code":"insufficient_quota"}}', "", Meaning.REJECTED),
        (429, b'{"error":{"code":"rate_limit_exceeded","message":"insufficient_quota"}}', "", Meaning.BUSY),
    ],
)
def test_refusal_means_what_its_own_fields_say(status, body, exception, meaning):
    assert meaning_of(status, body, exception) is meaning
