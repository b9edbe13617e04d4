"""Owns the request: OpenAI's chat completion as Converse's body, and the address that it is sent to.

| OpenAI | Converse |
| --- | --- |
| `messages` | `system`, `messages` (see `messages.py`); file names as document names |
| `max_tokens`, `max_completion_tokens` | `inferenceConfig.maxTokens`: the cap that the proxy sends, whatever they say |
| `temperature`, `top_p`, `stop` | `inferenceConfig`: both numbers from 0 to 1 |
| `tools`, `tool_choice` | `toolConfig`; `none` leaves it out, `allowed_tools` leaves out the other tools |
| `parallel_tool_calls: false` | Claude's `disable_parallel_tool_use`, where `tool_choice` is `auto`; else refused |
| `response_format` | `outputConfig.textFormat` for `json_schema`; `json_object` is refused |
| `reasoning_effort` | gpt-oss: the same, low to high; Nova 2: `reasoningConfig`, to medium; else refused |
| `service_tier` | `serviceTier`: default, flex, priority; auto leaves it out |
| `prompt_cache_breakpoint`, `cache_control`, `cachePoint` in parts and tools | `cachePoint` |
| `additionalModelRequestFields`, `guardrailConfig`, `performanceConfig`, `requestMetadata`, `serviceTier` | the same |
| `model`, `stream` | the address |

Ignored, since an answer without them is still the answer asked for: `stream_options` (usage always comes), `user`,
`safety_identifier`, `metadata`, `store` (nothing is), `seed` (OpenAI promises nothing of it), `prompt_cache_key`,
`prompt_cache_options`, `prompt_cache_retention`; of messages `name` and `annotations`, and `reasoning_content`, which
`reasoning_blocks` say as the model needs it; of images `detail`. Everything else is refused, unless it asks for what is
so anyway (`n: 1`).

Sources: Amazon Bedrock API reference, Converse; its user guide, "OpenAI models" and "Get validated JSON results from
models"; Amazon Nova 2 user guide, "Extended thinking"; Anthropic, "Parallel tool use".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

import orjson

from services.kit.validation import Violations
from services.proxy.converse.messages import TOOL_NAME, TOOL_NAME_RULE, Conversation, cache_point

MAX_STOP_SEQUENCES = 2_500

_PASSED = ("guardrailConfig", "performanceConfig", "requestMetadata")
_MODEL_FIELDS = "additionalModelRequestFields"
_READ = frozenset(
    {
        "model",
        "messages",
        "stream",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "stop",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "response_format",
        "reasoning_effort",
        "service_tier",
        "serviceTier",
        _MODEL_FIELDS,
        *_PASSED,
    }
)
_IGNORED = frozenset(
    {
        "stream_options",
        "user",
        "safety_identifier",
        "metadata",
        "store",
        "seed",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
    }
)
# What cannot be said in Converse, and what of it is so anyway.
_NEUTRAL: Mapping[str, object] = {
    "n": 1,
    "logprobs": False,
    "top_logprobs": 0,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "logit_bias": {},
    "modalities": ["text"],
    "verbosity": "medium",
}
_TIERS = ("default", "flex", "priority")
_BEDROCK_TIERS = (*_TIERS, "reserved")
# Fields of models that would undo what was held for: the cap, one answer, the tier. Compared without case and `_`.
_NOT_THE_CLIENTS = frozenset(
    {
        "maxtokens",
        "maxcompletiontokens",
        "maxnewtokens",
        "maxoutputtokens",
        "maxgenlen",
        "maxtokencount",
        "maxtokenstosample",
        "n",
        "numgenerations",
        "servicetier",
    }
)


def to_converse(body: Mapping[str, Any], cap: int) -> dict[str, Any]:
    """The Converse body for a chat completion, with `cap` as its most output tokens.

    `body` is JSON as `calls.chat` has read it: of bounded size, count and depth. Raises InvalidArgument naming every
    field that is wrong or cannot be said in Converse.
    """
    violations = Violations()
    violations.positive("cap", cap)
    _check_sayable(violations, body)
    conversation = Conversation(violations)
    conversation.read(body.get("messages"))
    model = body.get("model")
    model = model if isinstance(model, str) else ""
    fields = _object(violations, body, _MODEL_FIELDS)
    _check_model_fields(violations, fields)
    tool_config = _tool_config(violations, body, has_tool_blocks=conversation.has_tool_blocks)
    derived = _reasoning(violations, model, body.get("reasoning_effort"))
    if body.get("parallel_tool_calls") is False and tool_config:
        derived |= _one_tool_at_a_time(violations, model, tool_config)
    for name in derived.keys() & fields.keys():
        violations.add(f"{_MODEL_FIELDS}.{name}", "is said twice: here and in OpenAI's own field")
    found: dict[str, Any] = {
        "messages": conversation.turns,
        "system": conversation.system,
        "inferenceConfig": _inference(violations, body, cap),
        "toolConfig": tool_config,
        "outputConfig": _output_config(violations, body.get("response_format")),
        "serviceTier": _tier(violations, body),
        _MODEL_FIELDS: {**fields, **derived},
        **{name: _object(violations, body, name) for name in _PASSED},
    }
    violations.raise_if_any()
    return {name: value for name, value in found.items() if value}


def model_path(model: str, stream: bool) -> str:  # noqa: FBT001  (the two make one address)
    """The path, without a slash before it, to which a call of this model id or ARN is posted."""
    return f"model/{quote(model, safe='')}/{'converse-stream' if stream else 'converse'}"


def service_tier(body: Mapping[str, Any]) -> Any:
    """The tier asked for by OpenAI's `service_tier` or Bedrock's `serviceTier`: what a hold is to be priced by."""
    own = body.get("serviceTier")
    return own.get("type") if isinstance(own, dict) else body.get("service_tier")


def _check_sayable(violations: Violations, body: Mapping[str, Any]) -> None:
    for name, value in body.items():
        if value is None or name in _READ or name in _IGNORED:
            continue
        if name not in _NEUTRAL or value != _NEUTRAL[name]:
            violations.add(name[:64], "cannot be said in Bedrock's Converse")


def _object(violations: Violations, body: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = body.get(name)
    if value is None or isinstance(value, dict):
        return value or {}
    violations.add(name, "must be an object")
    return {}


def _check_model_fields(violations: Violations, fields: Mapping[str, Any]) -> None:
    # Nova's stand in an object of their own.
    inner = [(f"{name}.{key}", key) for name, value in fields.items() if isinstance(value, dict) for key in value]
    for path, key in [*((name, name) for name in fields), *inner]:
        if key.replace("_", "").lower() in _NOT_THE_CLIENTS:
            violations.add(f"{_MODEL_FIELDS}.{path}"[:200], "is set by the proxy; use OpenAI's own field")


def _inference(violations: Violations, body: Mapping[str, Any], cap: int) -> dict[str, Any]:
    config: dict[str, Any] = {"maxTokens": cap}
    for name, to in (("temperature", "temperature"), ("top_p", "topP")):
        value = body.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            violations.add(name, "must be a number from 0 to 1 on Bedrock")
        config[to] = value
    stop = body.get("stop")
    stops = [stop] if isinstance(stop, str) else stop
    if stops:
        if not isinstance(stops, list) or not all(isinstance(text, str) and text for text in stops):
            violations.add("stop", "must be a text or a list of texts, none of them empty")
        else:
            violations.count("stop", stops, at_most=MAX_STOP_SEQUENCES)
        config["stopSequences"] = stops
    return config


def _tool_config(violations: Violations, body: Mapping[str, Any], *, has_tool_blocks: bool) -> dict[str, Any]:
    tools, choice = body.get("tools") or [], body.get("tool_choice")
    if not isinstance(tools, list):
        violations.add("tools", "must be a list")
        return {}
    if choice == "none":
        if tools and has_tool_blocks:
            # Converse wants the tools of a conversation that has used some, and then the model may use them.
            violations.add("tool_choice", "cannot be `none` on Bedrock once tools were used in the conversation")
        return {}
    entries = list(_tools(violations, tools))
    names = [entry["toolSpec"]["name"] for entry in entries if "toolSpec" in entry]
    if not names:
        if tools:
            violations.add("tools", "must have a function")
        if choice is not None and choice != "auto":
            violations.add("tool_choice", "needs tools")
        return {}
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        entries, choice = _allowed(violations, entries, names, choice.get("allowed_tools"))
    return {"tools": entries} | _tool_choice(violations, names, choice)


def _tool_choice(violations: Violations, names: list[str], choice: object) -> dict[str, Any]:
    match choice:
        case None | "auto":
            return {}  # as it is without saying so
        case "required":
            return {"toolChoice": {"any": {}}}
        case {"type": "function", "function": {"name": str(name)}} if name in names:
            return {"toolChoice": {"tool": {"name": name}}}
    violations.add("tool_choice", "must be none, auto, required, or name a function among `tools`")
    return {}


def _tools(violations: Violations, tools: list[Any]) -> Iterator[dict[str, Any]]:
    for number, tool in enumerate(tools):
        field = f"tools[{number}]"
        function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
        if isinstance(function, dict):
            yield {"toolSpec": _tool_spec(violations, f"{field}.function", function)}
        elif not (isinstance(tool, dict) and tool.get("type") is None and "cachePoint" in tool):
            violations.add(field, "must be a function; Bedrock has no other tools")
        point = cache_point(violations, field, tool) if isinstance(tool, dict) else None
        if point is not None:
            yield point


def _tool_spec(violations: Violations, field: str, function: Mapping[str, Any]) -> dict[str, Any]:
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not TOOL_NAME.fullmatch(name):
        violations.add(f"{field}.name", TOOL_NAME_RULE)
    if parameters is not None and not isinstance(parameters, dict):
        violations.add(f"{field}.parameters", "must be an object")
    # A function without parameters: Converse wants a schema all the same.
    spec = {"name": name, "inputSchema": {"json": parameters or {"type": "object", "properties": {}}}}
    description = function.get("description")
    if description is not None and not isinstance(description, str):
        violations.add(f"{field}.description", "must be a string")
    elif description and description.strip():
        spec["description"] = description
    if function.get("strict") is True:
        spec["strict"] = True
    return spec


def _allowed(
    violations: Violations, entries: list[dict[str, Any]], names: list[str], allowed: object
) -> tuple[list[dict[str, Any]], str]:
    """The tools that may be called, and in which mode."""
    field = "tool_choice.allowed_tools"
    mode = allowed.get("mode") if isinstance(allowed, dict) else None
    wanted = allowed.get("tools") if isinstance(allowed, dict) else None
    functions = [tool.get("function") if isinstance(tool, dict) else None for tool in wanted or ()]
    chosen = [function.get("name") for function in functions if isinstance(function, dict)]
    if mode not in ("auto", "required") or not chosen or not all(name in names for name in chosen):
        violations.add(field, "must have a mode, auto or required, and functions that are among `tools`")
        return entries, "auto"
    kept = [entry for entry in entries if "toolSpec" not in entry or entry["toolSpec"]["name"] in chosen]
    return kept, str(mode)


def _one_tool_at_a_time(violations: Violations, model: str, tool_config: Mapping[str, Any]) -> dict[str, Any]:
    """Claude's own field, which Bedrock takes beside tools but not beside a choice of one."""
    if "anthropic.claude" not in model or "toolChoice" in tool_config:
        violations.add("parallel_tool_calls", "can be false on Bedrock only for Claude, with `tool_choice` auto")
    return {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}


def _reasoning(violations: Violations, model: str, effort: object) -> dict[str, Any]:
    if effort is None:
        return {}
    if "openai.gpt-oss" in model and effort in ("low", "medium", "high"):
        return {"reasoning_effort": effort}
    if "amazon.nova-2" in model and effort in ("none", "low", "medium"):
        # High wants no cap on the output, and there is always one.
        return {} if effort == "none" else {"reasoningConfig": {"type": "enabled", "maxReasoningEffort": effort}}
    violations.add(
        "reasoning_effort",
        f"cannot be so for this model on Bedrock; say it in its own words in {_MODEL_FIELDS}",
    )
    return {}


def _output_config(violations: Violations, wanted: object) -> dict[str, Any]:
    if wanted is None or wanted == {"type": "text"}:
        return {}
    described = wanted.get("json_schema") if isinstance(wanted, dict) and wanted.get("type") == "json_schema" else None
    if described is None:
        violations.add("response_format", "must be of type text or json_schema on Bedrock")
        return {}
    schema = described.get("schema") if isinstance(described, dict) else None
    if not isinstance(described, dict) or not isinstance(schema, dict):
        violations.add("response_format.json_schema.schema", "is required: an object")
        return {}
    structure: dict[str, Any] = {"schema": orjson.dumps(schema).decode()}
    for name in ("name", "description"):
        if described.get(name):
            structure[name] = described[name]
    return {"textFormat": {"type": "json_schema", "structure": {"jsonSchema": structure}}}


def _tier(violations: Violations, body: Mapping[str, Any]) -> dict[str, Any]:
    name, own = body.get("service_tier"), _object(violations, body, "serviceTier")
    if own and own.get("type") not in _BEDROCK_TIERS:
        violations.add("serviceTier.type", f"must be one of {', '.join(_BEDROCK_TIERS)}")
    if name is None or name == "auto":
        return own
    if name not in _TIERS:
        violations.add("service_tier", f"must be one of auto, {', '.join(_TIERS)} on Bedrock")
    if own and own.get("type") != name:
        violations.add("serviceTier.type", "is not what service_tier says")
    return own or {"type": name}
