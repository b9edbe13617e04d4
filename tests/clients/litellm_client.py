"""LiteLLM as a client, through Envoy: whole answers, streams, tools, costs to the nano, and its own exceptions.

LiteLLM needs an older `openai` than the one that is tested here, so it has an environment of its own: `make litellm`
makes it, and runs this against the suite that is up. Exits with 1 where something is not as it should be.
"""

import asyncio
import itertools
import json
import os
import sys
import time
import urllib.request

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import litellm

litellm.telemetry = False
URL, ADMIN = os.environ["TOLLKEEPER_URL"], os.environ["TOLLKEEPER_ADMIN_KEY"]
OPENAI = {"model": "openai/gpt-4o", "api_base": f"{URL}/v1"}
ANTHROPIC = {"model": "anthropic/claude-3-haiku", "api_base": URL, "max_tokens": 100}
GEMINI = {"model": "gemini/gemini-1.5-pro", "api_base": f"{URL}/v1beta"}
# Nanos a token, in and out, of the shipped catalogue.
RATES = {"openai": (5000, 15_000), "anthropic": (800, 4000), "gemini": (1250, 5000)}
QUESTION = [{"role": "user", "content": "What is a toll?"}]
TOOLS = [{"type": "function", "function": {"name": "get_toll", "parameters": {"type": "object", "properties": {}}}}]
CREDIT = 10**9

_numbers = itertools.count(1)


def ask(path, key, body=None):
    """One request to our own API; the answer's JSON."""
    request = urllib.request.Request(URL + path, json.dumps(body).encode() if body is not None else None)
    request.add_header("content-type", "application/json")
    request.add_header("authorization", f"Bearer {key}")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def customer(nanos=CREDIT, **words):
    """A key of a new prepaid account with so much credit."""
    account = f"litellm-{time.time_ns()}-{next(_numbers)}"
    ask("/api/admin/accounts", ADMIN, {"accountId": account, "plan": "payg"})
    if nanos:
        ask(f"/api/admin/accounts/{account}/credits", ADMIN, {"amountNanos": str(nanos), "requestId": account})
    return ask("/api/admin/keys", ADMIN, {"accountId": account, "name": "litellm", **words})["key"]


def cost(form, usage):
    """What a call costs on the prepaid plan: its multiplier is 1.5, and a half nano goes to the even one."""
    into, out = RATES[form["model"].split("/")[0]]
    return round((usage.prompt_tokens * into + usage.completion_tokens * out) * 3 / 2)


def spent(key):
    return CREDIT - int(ask("/api/credits/balance", key)["availableNanos"])


def text(chunks):
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def usages(chunks):
    return [chunk.usage for chunk in chunks if getattr(chunk, "usage", None)]


def whole_and_streamed(form):
    key = customer()
    answer = litellm.completion(**form, api_key=key, messages=QUESTION)
    assert answer.choices[0].message.content
    first = cost(form, answer.usage)
    assert spent(key) == first, (spent(key), first)
    words = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(litellm.completion(**form, api_key=key, messages=QUESTION, **words))
    assert text(chunks)
    assert spent(key) == first + cost(form, usages(chunks)[-1])


def openai_whole_and_streamed():
    whole_and_streamed(OPENAI)


def anthropic_whole_and_streamed():
    whole_and_streamed(ANTHROPIC)


def gemini_whole_and_streamed():
    whole_and_streamed(GEMINI)


def asynchronous():
    key = customer()

    async def both():
        answer = await litellm.acompletion(**OPENAI, api_key=key, messages=QUESTION)
        words = {"stream": True, "stream_options": {"include_usage": True}}
        stream = await litellm.acompletion(**OPENAI, api_key=key, messages=QUESTION, **words)
        return answer, [chunk async for chunk in stream]

    answer, chunks = asyncio.run(both())
    assert spent(key) == cost(OPENAI, answer.usage) + cost(OPENAI, usages(chunks)[-1])


def tools():
    key, words = customer(), {"tools": TOOLS, "tool_choice": "required", "messages": QUESTION}
    answer = litellm.completion(**OPENAI, api_key=key, **words)
    assert answer.choices[0].message.tool_calls[0].function.name == "get_toll"
    built = litellm.stream_chunk_builder(list(litellm.completion(**OPENAI, api_key=key, stream=True, **words)))
    assert built.choices[0].message.tool_calls[0].function.name == "get_toll"


def responses():
    key = customer()
    answer = litellm.responses(**OPENAI, api_key=key, input="What is a toll?")
    assert spent(key) == (answer.usage.input_tokens * 5000 + answer.usage.output_tokens * 15_000) * 3 // 2


def refused(kind, status, form=OPENAI, **words):
    """The call is refused as this exception with this status."""
    found = None
    try:
        litellm.completion(**{**form, "messages": QUESTION, "num_retries": 0, "max_retries": 0, **words})
    except Exception as error:  # noqa: BLE001 (whatever it is, it is looked at)
        found = error
    assert isinstance(found, kind), repr(found)
    assert found.status_code == status, repr(found)


def exceptions():
    poor, rich, wrong = customer(0), customer(), "tk_live_" + "x" * 40
    refused(litellm.AuthenticationError, 401, api_key=wrong)
    refused(litellm.AuthenticationError, 401, ANTHROPIC, api_key=wrong)
    refused(litellm.exceptions.APIError, 402, api_key=poor)
    refused(litellm.BadRequestError, 400, api_key=poor, max_tokens=-1)
    refused(litellm.RateLimitError, 429, api_key=customer(dailyLimitUsd="0.000001"))
    down = [{"role": "user", "content": "[[sandbox status=404]]"}]
    refused(litellm.NotFoundError, 404, api_key=rich, messages=down)
    assert spent(rich) == 0


CHECKS = (
    openai_whole_and_streamed,
    anthropic_whole_and_streamed,
    gemini_whole_and_streamed,
    asynchronous,
    tools,
    responses,
    exceptions,
)


def main():
    failed = 0
    for check in CHECKS:
        try:
            check()
        except Exception as error:  # noqa: BLE001 (each check is reported)
            failed += 1
            print(f"failed  {check.__name__}: {type(error).__name__} {error}")
        else:
            print(f"ok      {check.__name__}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
