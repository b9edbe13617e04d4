"""What is read of a request in every format: bounds that hold, what is billed apart, what is said twice."""

import contextlib
import json

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from proxy_fakes import upstream_provider

from deploy.local.sandbox.provider.refusal import Dialect, Provider
from deploy.local.sandbox.provider.routes import Endpoint, Route
from deploy.local.sandbox.provider.wire.anthropic_messages import Messages
from deploy.local.sandbox.provider.wire.gemini import GenerateContent
from deploy.local.sandbox.provider.wire.openai_responses import Responses
from services.kit.refusals import InvalidArgument
from services.proxy.errors import ToolNotPriced
from services.proxy.formats.anthropic_messages import MessagesRequest
from services.proxy.formats.gemini import GeminiRequest
from services.proxy.formats.openai_chat import ChatRequest
from services.proxy.formats.openai_embeddings import EmbeddingsRequest
from services.proxy.formats.openai_responses import ResponsesRequest

WINDOW = 200_000
USER = [{"role": "user", "content": "x"}]
CONTENTS = [{"role": "user", "parts": [{"text": "x"}]}]


def image_at(url):
    return {"type": "image_url", "image_url": {"url": url}}


# By form: its request, the least body of it, and the sandbox's own reading of such a body.
FORMS = {
    "chat": (ChatRequest, {"model": "m", "messages": USER}, None),
    "responses": (
        ResponsesRequest,
        {"model": "m", "input": "x"},
        (Responses(), Route(Provider.OPENAI, Endpoint.RESPONSES, Dialect.OPENAI)),
    ),
    "messages": (
        MessagesRequest,
        {"model": "m", "max_tokens": 100, "messages": USER},
        (Messages(), Route(Provider.ANTHROPIC, Endpoint.MESSAGES, Dialect.ANTHROPIC)),
    ),
    "gemini": (
        GeminiRequest,
        {"contents": CONTENTS},
        (GenerateContent(sse=False), Route(Provider.GOOGLE, Endpoint.GENERATE, Dialect.GOOGLE, model="m")),
    ),
    "embeddings": (EmbeddingsRequest, {"model": "m", "input": "x"}, None),
}


def read(form, **fields):
    kind, least, _ = FORMS[form]
    raw = orjson.dumps(least | fields)
    return kind.read(raw, model="m") if kind is GeminiRequest else kind.read(raw)


# --------------------------------------------------------------------------------------------------------------- bounds

texts = st.text(max_size=50)
base64s = st.integers(0, 5000).map(lambda length: "A" * length)
names = st.sampled_from(["f", "get_toll", "a_rather_long_name"])
schemas = texts.map(lambda text: {"type": "object", "properties": {"a": {"type": "string", "description": text}}})


def conversations(parts, role="user", content="content"):
    return st.lists(
        st.lists(parts, min_size=1, max_size=2).map(lambda found: {"role": role, content: found}),
        min_size=1,
        max_size=4,
    )


anthropic_blocks = st.one_of(
    texts.map(lambda text: {"type": "text", "text": f"said: {text}"}),
    base64s.map(lambda data: {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}),
    texts.map(lambda text: {"type": "tool_result", "tool_use_id": "t", "content": text}),
)
gemini_parts = st.one_of(
    texts.map(lambda text: {"text": text}),
    base64s.map(lambda data: {"inlineData": {"mimeType": "image/png", "data": data}}),
    texts.map(lambda text: {"functionResponse": {"name": "f", "response": {"said": text}}}),
)
response_parts = st.one_of(
    texts.map(lambda text: {"type": "input_text", "text": text}),
    base64s.map(lambda data: {"type": "input_image", "image_url": f"data:image/png;base64,{data}"}),
)
BODIES = {
    "messages": st.fixed_dictionaries(
        {"messages": conversations(anthropic_blocks)},
        optional={
            "system": texts,
            "tools": st.lists(
                st.fixed_dictionaries({"name": names, "description": texts, "input_schema": schemas}),
                min_size=1,
                max_size=2,
            ),
        },
    ),
    "gemini": st.fixed_dictionaries(
        {"contents": conversations(gemini_parts, content="parts")},
        optional={
            "systemInstruction": texts.map(lambda text: {"parts": [{"text": text}]}),
            "tools": st.lists(
                st.fixed_dictionaries({"name": names, "description": texts, "parametersJsonSchema": schemas}),
                min_size=1,
                max_size=2,
            ).map(lambda declared: [{"functionDeclarations": declared}]),
        },
    ),
    "responses": st.fixed_dictionaries(
        {"input": conversations(response_parts)},
        optional={
            "instructions": texts,
            "tools": st.lists(
                st.fixed_dictionaries(
                    {"type": st.just("function"), "name": names, "strict": st.just(False), "parameters": schemas}
                ),
                min_size=1,
                max_size=2,
            ),
        },
    ),
}


@pytest.mark.parametrize("form", BODIES)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), ascii_only=st.booleans())
def test_bound_is_never_below_the_real_count(form, data, ascii_only):
    kind, least, (sandbox, route) = FORMS[form]
    body = least | data.draw(BODIES[form])
    raw = json.dumps(body, ensure_ascii=ascii_only, separators=(",", ":")).encode()
    real = sandbox.read(orjson.loads(raw), route).input_tokens
    assert (kind.read(raw, model="m") if kind is GeminiRequest else kind.read(raw)).input_bound >= real


@pytest.mark.parametrize(
    ("form", "fields"),
    [
        ("responses", {"previous_response_id": "resp_1"}),
        ("responses", {"conversation": "conv_1"}),
        ("responses", {"prompt": {"id": "pmpt_1"}}),
        ("responses", {"input": [{"type": "item_reference", "id": "msg_1"}]}),
        ("responses", {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "file-1"}]}]}),
        ("messages", {"thread": {"type": "continue", "previous_message_id": "msg_1"}}),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "container_upload", "file_id": "f"}]}]}),
        ("gemini", {"cachedContent": "cachedContents/1"}),
        ("gemini", {"tools": [{"urlContext": {}}]}),
        ("gemini", {"contents": [{"parts": [{"fileData": {"fileUri": "https://example.com/a"}}]}]}),
        ("chat", {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]}]}),
        ("chat", {"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}, *USER]}),
        ("chat", {"messages": [{"role": "user", "content": [image_at("data:application/pdf;base64,AAAA")]}]}),
        ("chat", {"messages": [{"role": "user", "content": [image_at(" DATA:video/mp4;base64,AAAA")]}]}),
        ("responses", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,a"}]}]}),
        ("chat", {"extra_body": {"google": {"cached_content": "cachedContents/1"}}}),
        ("chat", {"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": "a"}}]}]}),
        (
            "gemini",
            {"contents": [{"parts": [{"functionResponse": {"name": "f", "parts": [{"fileData": {"fileUri": "a"}}]}}]}]},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_what_is_not_brought_along_may_fill_the_window(form, fields):
    assert read(form, **fields).input_bound >= WINDOW > read(form).input_bound


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "assistant", "audio": {"id": "audio_1"}}, *USER],
        [{"role": "user", "content": [image_at("data:audio/wav;base64,AAAA")]}],
    ],
    ids=["earlier", "as an image"],
)
def test_recording_is_priced_as_one_wherever_it_stands(messages):
    assert "audio_input" in read("chat", messages=messages).components


@pytest.mark.parametrize("url", ["data:image/png;base64,AAAA", "https://example.com/a.png"])
def test_image_by_its_address_is_counted_as_one(url):
    request = read("chat", messages=[{"role": "user", "content": [image_at(url)]}])
    assert 5_000 <= request.input_bound < 6_000
    assert "image_input" in request.components


@pytest.mark.parametrize(
    ("model", "resolution", "most"),
    [
        ("gemini-2.5-pro", {}, 300_000),
        ("gemini-3-pro", {}, 600_000),
        ("gemini-3-pro", {"mediaResolution": "MEDIA_RESOLUTION_HIGH"}, 1_048_576),
        ("gemini-3-pro", {"media_resolution": 3}, 1_048_576),
    ],
    ids=["older", "plain", "high", "high-by-number"],
)
def test_pdf_is_of_as_many_tokens_as_its_pages_may_have(model, resolution, most):
    part = {"inlineData": {"mimeType": "application/pdf", "data": "A" * 4000}}
    raw = orjson.dumps({"contents": [{"parts": [part]}], "generationConfig": resolution})
    assert most <= GeminiRequest.read(raw, model=model).input_bound < most + 1_000


LARGE_WINDOW = 1_000_000
UPLOAD = {"type": "container_upload", "file_id": "file-1"}
FILE = {"type": "file", "file": {"file_data": "A" * 4000}}


@pytest.mark.parametrize(
    ("form", "fields", "windows"),
    [
        ("responses", {"previous_response_id": "resp_1"}, (WINDOW, LARGE_WINDOW)),
        ("messages", {"thread": {"a": 1}, "messages": [{"role": "user", "content": [UPLOAD]}]}, (WINDOW, LARGE_WINDOW)),
        ("chat", {"messages": [{"role": "user", "content": [FILE]}]}, (WINDOW, WINDOW)),
        ("chat", {"messages": [{"role": "user", "content": [FILE] * 3}]}, (WINDOW, 3 * WINDOW)),
        ("chat", {"messages": [{"role": "user", "content": [FILE] * 9}]}, (WINDOW, LARGE_WINDOW)),
    ],
    ids=["memory", "two-names", "file", "three-files", "nine-files"],
)
def test_what_is_not_seen_fills_the_models_window_once(form, fields, windows):
    request = read(form, **fields)
    text = request.input_within(0) - windows[0]
    assert 0 < text < 5_000
    assert [request.input_within(window) - text for window in (0, 16_000, WINDOW)] == [windows[0]] * 3
    assert request.input_within(LARGE_WINDOW) - text == windows[1]


FUNCTION = {"name": "f", "input_schema": {"type": "object"}}
CHAT_FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
EDITOR = {"type": "text_editor_20250728", "name": "str_replace_based_edit_tool"}
BASH = {"type": "bash_20250124", "name": "bash"}
COMPUTER = {"type": "computer_20250124", "name": "computer", "display_width_px": 1024, "display_height_px": 768}


# Anthropic, "Tool use", "Tool use system prompt token count": 346 with `auto` or `none`, 313 with `any` or a tool, on
# the models of today and Claude 3.5 Sonnet; 530 and 281 on Claude 3 Opus, 264 and 340 on Claude 3 Haiku. To that each
# tool of theirs adds: bash 245, the text editor 700, the computer 735, with up to 499 of system prompt.
@pytest.mark.parametrize(
    ("form", "model", "tools", "documented"),
    [
        ("messages", "claude-sonnet-4-5", [FUNCTION], 346),
        ("messages", "claude-sonnet-4-5", [FUNCTION | {"type": "custom"}], 346),
        ("messages", "claude-3-opus", [FUNCTION], 530),
        ("messages", "claude-3-haiku", [FUNCTION], 340),
        ("messages", "an-alias", [FUNCTION], 530),
        ("messages", "claude-sonnet-4-5", [BASH], 346 + 245),
        ("messages", "claude-sonnet-4-5", [EDITOR], 346 + 700),
        ("messages", "claude-sonnet-4-5", [COMPUTER], 346 + 499 + 735),
        ("messages", "claude-sonnet-4-5", [EDITOR, BASH, COMPUTER], 346 + 700 + 245 + 499 + 735),
        ("chat", "claude-3-opus", [CHAT_FUNCTION], 530),
        ("chat", "anthropic/claude-3-opus", [CHAT_FUNCTION], 530),
        ("chat", "us.anthropic.claude-3-opus-20240229-v1:0", [CHAT_FUNCTION], 530),
        ("chat", "arn:aws:bedrock:us-east-1:1:application-inference-profile/x", [CHAT_FUNCTION], 530),
        ("chat", "claude-sonnet-4-5", [EDITOR], 346 + 700),
    ],
)
def test_claude_reads_a_system_prompt_with_tools_that_the_request_does_not_show(form, model, tools, documented):
    without = read(form, model=model)
    written = len(orjson.dumps(tools))
    assert read(form, model=model, tools=tools).input_bound >= without.input_bound + written + documented


def test_claude_is_told_the_form_of_an_answer_too():
    schema = {"type": "json_schema", "schema": {"type": "object"}}
    for fields in ({"output_format": schema}, {"output_config": {"format": schema}}):
        assert read("messages", **fields).input_bound > read("messages").input_bound + len(orjson.dumps(schema)) + 300


def test_other_models_tools_are_all_in_the_request():
    written = len(orjson.dumps([CHAT_FUNCTION]))
    more = read("chat", model="gpt-4o", tools=[CHAT_FUNCTION]).input_bound - read("chat", model="gpt-4o").input_bound
    assert written < more < written + 100


def test_compaction_may_read_everything_twice():
    edits = {"edits": [{"type": "compact_20260112"}]}
    assert read("messages", context_management=edits).input_bound >= 2 * read("messages").input_bound


@pytest.mark.parametrize(
    ("edits", "twice"),
    [
        ([{"type": "clear_thinking_20251015", "keep": "all"}], False),  # which Claude Code sends with each call
        ([{"type": "clear_tool_uses_20250919"}, {"type": "clear_thinking_20251015"}], False),
        ([{"type": "clear_thinking_20251015"}, {"type": "compact_20260112"}], True),
        ([{"type": "of_tomorrow"}], True),
        ([7], True),
        ("all", True),
    ],
)
def test_what_only_clears_the_context_is_not_read_twice(edits, twice):
    plain, edited = read("messages").input_bound, read("messages", context_management={"edits": edits}).input_bound
    assert (edited >= 2 * plain) is twice


# ------------------------------------------------------------------------------------------------------- billed apart


@pytest.mark.parametrize(
    ("form", "fields", "named"),
    [
        ("chat", {"web_search_options": {}}, "web_search_options"),
        ("chat", {"plugins": [{"id": "web"}]}, "plugins"),
        ("chat", {"tools": [{"type": "web_search"}]}, "web_search"),
        ("chat", {"tools": [{"googleSearch": {}}]}, "googleSearch"),
        ("chat", {"extra_body": {"google": {"tools": [{"google_search": {}}]}}}, "googleSearch"),
        ("chat", {"models": ["maker/dearer"]}, "models"),
        ("chat", {"provider": {"order": ["dearer"]}}, "provider"),
        ("chat", {"deferred": True}, "deferred"),
        ("chat", {"best_of": 8}, "best_of"),
        ("chat", {"enable_search": True}, "enable_search"),
        ("chat", {"fallbacks": ["maker/dearer"]}, "fallbacks"),
        ("responses", {"tools": [{"type": "namespace", "tools": [{"type": "web_search"}]}]}, "web_search"),
        ("responses", {"tools": [{"type": "web_search_preview"}]}, "web_search_preview"),
        ("responses", {"tools": [{"type": "code_interpreter", "container": "c"}]}, "code_interpreter"),
        ("responses", {"tools": [{"type": "image_generation"}]}, "image_generation"),
        ("responses", {"tools": [{"type": "file_search", "vector_store_ids": []}]}, "file_search"),
        ("responses", {"tools": [{"type": "shell"}]}, "shell"),
        ("messages", {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search_20250305"),
        ("messages", {"tools": [{"type": "code_execution_20260120", "name": "c"}]}, "code_execution_20260120"),
        ("messages", {"tools": [{"type": "advisor_20260301", "name": "a"}]}, "advisor_20260301"),
        ("responses", {"tools": [{"type": "mcp", "server_url": "https://example.com"}]}, "mcp"),
        ("messages", {"mcp_servers": [{"type": "url", "url": "https://example.com", "name": "a"}]}, "mcp_servers"),
        ("gemini", {"tools": [{"mcp_servers": [{"name": "a"}]}]}, "mcpServers"),
        ("messages", {"speed": "fast"}, "speed"),
        ("messages", {"inference_geo": "us"}, "inference_geo"),
        ("messages", {"fallbacks": [{"model": "claude-3-opus"}]}, "fallbacks"),
        ("messages", {"fallbacks": "default"}, "fallbacks"),
        ("gemini", {"tools": [{"googleSearch": {}}]}, "googleSearch"),
        ("gemini", {"tools": [{"google_search": {}}]}, "googleSearch"),
        ("gemini", {"tools": [{"googleMaps": {}}]}, "googleMaps"),
        ("gemini", {"tools": {"google_maps": {}}}, "googleMaps"),
        ("gemini", {"tools": [{"functionDeclarations": [], "exa_ai_search": {}}]}, "exaAiSearch"),
        ("gemini", {"tools": [{"parallelAiSearch": {}}]}, "parallelAiSearch"),
        ("gemini", {"tools": [{"retrieval": {}}]}, "retrieval"),
        ("gemini", {"tools": [{"what_google_adds_next": {}}]}, "whatGoogleAddsNext"),
        ("chat", {"tools": [{"type": "openrouter:web_search"}]}, "openrouter:web_search"),
        ("chat", {"tools": [{"type": "builtin_function", "function": {"name": "$web_search"}}]}, "builtin_function"),
        ("chat", {"tools": [CHAT_FUNCTION | {"google_search": {}}]}, "googleSearch"),
        ("chat", {"tools": [{"exaAiSearch": {}}]}, "exaAiSearch"),
        ("chat", {"extra_body": {"google": {"tools": [{"exa_ai_search": {}}]}}}, "exaAiSearch"),
        ("responses", {"tools": [{"type": "what_openai_adds_next"}]}, "what_openai_adds_next"),
        ("responses", {"multi_agent": {"enabled": True}}, "multi_agent"),
        ("responses", {"reasoning": {"effort": "high", "mode": "pro"}}, "reasoning.mode"),
        ("responses", {"reasoning": {"mode": ["what_openai_adds_next"]}}, "reasoning.mode"),
        ("gemini", {"generationConfig": {"routingConfig": {"autoMode": {}}}}, "routingConfig"),
        ("gemini", {"generation_config": {"routing_config": {"manual_mode": {"model_name": "m"}}}}, "routingConfig"),
        (
            "messages",
            {"tools": [{"type": "what_anthropic_adds_next_20270101", "name": "a"}]},
            "what_anthropic_adds_next_20270101",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_is_billed_besides_the_tokens_is_refused_by_its_name(form, fields, named):
    with pytest.raises(ToolNotPriced) as caught:
        read(form, **fields)
    assert caught.value.metadata["tool"] == named


WEB_SEARCH = {"type": "web_search_20260318", "name": "web_search"}
ADDITION = {"type": "tool_addition", "tool": {"type": "tool_definition", "definition": WEB_SEARCH}}


# OpenAI's and Anthropic's conversations may bring tools along, beside those that the request itself has.
@pytest.mark.parametrize(
    ("form", "fields", "named"),
    [
        ("responses", {"input": [{"type": "additional_tools", "role": "developer", "tools": tools}]}, "web_search")
        for tools in ([{"type": "web_search"}], [{"type": "namespace", "tools": [{"type": "web_search"}]}])
    ]
    + [
        (
            "responses",
            {"input": [{"type": "tool_search_output", "tools": [{"type": "image_generation"}]}]},
            "image_generation",
        ),
        ("messages", {"messages": [*USER, {"role": "system", "content": [ADDITION]}]}, "web_search_20260318"),
        ("messages", {"system": [ADDITION]}, "web_search_20260318"),
        (
            "messages",
            {"messages": [{"role": "user", "content": [{"type": "compaction", "tool_changes": [ADDITION]}]}]},
            "web_search_20260318",
        ),
    ],
)
def test_tool_that_a_conversation_brings_along_is_refused_as_among_the_tools(form, fields, named):
    with pytest.raises(ToolNotPriced) as caught:
        read(form, **fields)
    assert caught.value.metadata["tool"] == named


@pytest.mark.parametrize(
    ("form", "tool"),
    [("chat", {"type": kind}) for kind in ("function", "custom", "bash_20250124", "text_editor_20250728")]
    + [("chat", {"cachePoint": {"type": "default"}}), ("chat", {"functionDeclarations": []})]
    + [
        ("responses", {"type": kind})
        for kind in (
            *("function", "custom", "computer", "computer_use_preview", "local_shell", "apply_patch"),
            *("tool_search", "programmatic_tool_calling", "namespace"),
        )
    ]
    + [
        ("messages", {"type": kind})
        for kind in (
            *(None, "custom", "bash_20250124", "text_editor_20250728", "computer_20251124", "memory_20250818"),
            *("computer_toolset_20260801", "browser_toolset_20260801"),
            *("tool_search_tool_bm25", "tool_search_tool_regex_20251119"),
        )
    ],
)
def test_tools_that_the_tokens_pay_for_are_served(form, tool):
    assert read(form, tools=[tool]).body["tools"] == [tool]


def test_claude_reads_a_system_prompt_with_a_tool_that_a_message_brings_along():
    said = [{"role": "system", "content": [ADDITION | {"tool": {"type": "tool_definition", "definition": BASH}}]}]
    nothing = [{"role": "system", "content": [ADDITION | {"tool": {"type": "tool_reference", "name": "a"}}]}]
    written = len(orjson.dumps(said)) - len(orjson.dumps(nothing))
    more = read("messages", messages=USER + said).input_bound - read("messages", messages=USER + nothing).input_bound
    assert more >= written + 346 + 245


@pytest.mark.parametrize("odd", [[], {}, 1.5, [None], [[1]]], ids=str)
@pytest.mark.parametrize("field", ["speed", "inference_geo", "source.type"])
def test_a_value_of_another_kind_is_no_fault_of_ours(field, odd):
    document = {"type": "document", "source": {"type": odd}}
    fields = {"messages": [{"role": "user", "content": [document]}]} if field == "source.type" else {field: odd}
    with contextlib.suppress(InvalidArgument, ToolNotPriced):
        read("messages", **fields)


def test_openais_compaction_may_read_everything_twice_too():
    management = [{"type": "compaction", "compact_threshold": 1_000}]
    assert read("responses", context_management=management).input_bound >= 2 * read("responses").input_bound


@pytest.mark.parametrize(
    "tool",
    [
        *("functionDeclarations", "function_declarations", "codeExecution", "code_execution"),
        *("urlContext", "url_context", "fileSearch", "file_search", "computerUse", "computer_use"),
    ],
)
def test_googles_tools_that_its_tokens_pay_for_are_served(tool):
    reads = tool.replace("_", "").lower() in {"codeexecution", "urlcontext", "filesearch"}
    assert (read("gemini", tools=[{tool: {}}]).input_bound >= WINDOW) is reads


# ------------------------------------------------------------------------------------------------- fields and answers


@pytest.mark.parametrize(
    ("form", "fields", "components"),
    [
        ("gemini", {}, {"image_output"}),  # which models that make images do, unasked
        ("gemini", {"generationConfig": {"responseModalities": ["TEXT"]}}, set()),
        ("gemini", {"generationConfig": {"responseModalities": ["text", "image"]}}, {"image_output"}),
        ("gemini", {"generationConfig": {"responseModalities": "AUDIO"}}, {"audio_output"}),
        ("gemini", {"generation_config": {"response_modalities": [2]}}, {"audio_output", "image_output"}),
        ("chat", {}, set()),
        ("chat", {"modalities": ["text"]}, set()),
        ("chat", {"modalities": ["image", "text"]}, {"image_output"}),
        ("chat", {"modalities": ["text", "audio"]}, {"audio_output"}),
    ],
    ids=lambda value: None if isinstance(value, set) else str(value),  # sets have no order to name them by
)
def test_what_an_answer_may_be_made_of_is_held_for(form, fields, components):
    assert read(form, **fields).components & {"audio_output", "image_output"} == components


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"generationConfig": {"maxOutputTokens": 5, "max_output_tokens": 9}}, ["maxOutputTokens"]),
        ({"generationConfig": {}, "generation_config": {}}, ["generationConfig"]),
        ({"cachedContent": "a", "cached_content": "b"}, ["cachedContent"]),
        ({"contents": []}, ["contents"]),
        ({"generationConfig": {"maxOutputTokens": 0}}, ["generationConfig.maxOutputTokens"]),
        ({"generationConfig": {"candidateCount": 1000}}, ["generationConfig.candidateCount"]),
    ],
    ids=str,
)
def test_geminis_fields_are_refused_where_their_meaning_is_googles_to_say(fields, named):
    with pytest.raises(InvalidArgument) as caught:
        read("gemini", **fields)
    assert [violation.field for violation in caught.value.violations] == named


@pytest.mark.parametrize("config", ["generationConfig", "generation_config"])
@pytest.mark.parametrize("cap", ["maxOutputTokens", "max_output_tokens"])
def test_geminis_cap_is_lowered_in_the_spelling_that_it_has(config, cap):
    request = read("gemini", **{config: {cap: 9, "temperature": 0.5}})
    sent = request.outgoing(7, upstream_provider("google", "gemini"))
    assert (request.cap, sent.path) == (9, "models/m:generateContent")
    assert orjson.loads(sent.body) == {"contents": CONTENTS, config: {cap: 7, "temperature": 0.5}}


@pytest.mark.parametrize("cap", ["20", 20.0, 20])
def test_geminis_integers_are_read_as_proto_json_writes_them(cap):
    request = read("gemini", generationConfig={"maxOutputTokens": cap, "candidateCount": "2"})
    assert (request.cap, request.choices) == (20, 2)
    sent = orjson.loads(request.outgoing(7, upstream_provider("google", "gemini")).body)
    assert sent["generationConfig"] == {"maxOutputTokens": 7, "candidateCount": "2"}
    assert read("gemini", generationConfig={"candidateCount": 0}).choices == 1


@pytest.mark.parametrize("config", [{"maxOutputTokens": x} for x in ("", "ten", "1e2", 20.5, True, "-1", "9" * 30)])
def test_what_is_no_integer_in_proto_json_is_refused(config):
    with pytest.raises(InvalidArgument) as caught:
        read("gemini", generationConfig=config)
    assert "generationConfig.maxOutputTokens" in str(caught.value.violations)


@pytest.mark.parametrize(
    ("form", "fields", "tier"),
    [
        ("chat", {"service_tier": "fast"}, "priority"),
        ("responses", {"service_tier": "fast"}, "priority"),
        ("gemini", {"serviceTier": "unspecified"}, "standard"),
        ("gemini", {"service_tier": "UNSPECIFIED"}, "standard"),
        ("gemini", {"serviceTier": "FLEX"}, "flex"),
        ("gemini", {"serviceTier": "priority"}, "priority"),
    ],
    ids=str,
)
def test_tier_is_known_by_each_of_its_names(form, fields, tier):
    assert read(form, **fields).service_tier == tier


def test_message_that_only_fills_the_cache_has_no_output():
    request = read("messages", max_tokens=0)
    assert (request.cap, request.least_cap) == (0, 0)
    assert orjson.loads(request.outgoing(0, upstream_provider("p", "messages")).body)["max_tokens"] == 0
    with pytest.raises(InvalidArgument):
        read("messages", max_tokens=-1)


@pytest.mark.parametrize("form", ["responses", "messages"])
def test_lower_cap_of_the_clients_own_stays(form):
    name = {"responses": "max_output_tokens", "messages": "max_tokens"}[form]
    request = read(form, **{name: 20})
    assert orjson.loads(request.outgoing(50, upstream_provider("p", form)).body)[name] == 20
    assert orjson.loads(request.outgoing(17, upstream_provider("p", form)).body)[name] == 17


@pytest.mark.parametrize(
    ("form", "fields", "least"),
    [
        ("chat", {}, 1),
        ("gemini", {}, 1),
        ("responses", {}, 16),
        ("responses", {"max_output_tokens": 5}, 5),
        ("messages", {}, 1),
        ("messages", {"max_tokens": 4000, "thinking": {"type": "enabled", "budget_tokens": 1024}}, 1025),
        ("messages", {"max_tokens": 100, "thinking": {"type": "enabled", "budget_tokens": 1024}}, 100),
        ("messages", {"thinking": {"type": "disabled"}}, 1),
        ("messages", {"thinking": "much"}, 1),
    ],
    ids=str,
)
def test_least_cap_is_what_the_provider_takes(form, fields, least):
    assert read(form, **fields).least_cap == least


@pytest.mark.parametrize(
    ("given", "estimated"),
    [("Hello, world", 3), (["Hello, world", "Hello, world"], 6), ([1, 2, 3], 3), ([[1, 2], [3]], 3)],
    ids=str,
)
def test_embedded_input_is_estimated_as_it_was_given(given, estimated):
    assert read("embeddings", input=given).estimated_input() == estimated


def test_response_made_in_the_background_is_refused():
    with pytest.raises(InvalidArgument) as caught:
        read("responses", background=True)
    assert [violation.field for violation in caught.value.violations] == ["background"]
