"""Over REST: a prepaid account, credit, a key with a daily cap, a call, and what it cost. Needs no library."""

import json
import os
import secrets
import urllib.request

URL, ADMIN = os.environ["TOLLKEEPER_URL"], os.environ["TOLLKEEPER_ADMIN_KEY"]


def ask(path, key, body=None):
    """One request: a POST where there is a body, else a GET; the answer's JSON and headers."""
    request = urllib.request.Request(URL + path, data=json.dumps(body).encode() if body is not None else None)
    request.add_header("authorization", f"Bearer {key}")
    request.add_header("content-type", "application/json")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer), answer.headers


account = f"example-{secrets.token_hex(4)}"
ask("/api/admin/accounts", ADMIN, {"accountId": account, "displayName": "An example", "plan": "payg"})
# The request id makes a repeat of this harmless: credit is given once.
ask(f"/api/admin/accounts/{account}/credits", ADMIN, {"amountUsd": "2.00", "requestId": f"{account}-first"})
made, _ = ask("/api/admin/keys", ADMIN, {"accountId": account, "name": "example", "dailyLimitUsd": "1.00"})
key = made["key"]  # shown this once

question = {"model": "gpt-4o", "messages": [{"role": "user", "content": "What is a toll?"}], "max_tokens": 50}
answer, headers = ask("/v1/chat/completions", key, question)
print(answer["choices"][0]["message"]["content"])
print(f"cost {headers['x-tollkeeper-cost-credits']} credits, {headers['x-tollkeeper-credits-remaining']} are left")

balance, _ = ask("/api/credits/balance", key)
usage, _ = ask("/api/billing/usage?pageSize=1", key)
spent = int(usage["records"][0]["billedNanos"])
assert int(balance["availableNanos"]) == 2_000_000_000 - spent
print(f"{spent} nanos were billed, by price version {usage['records'][0]['priceVersion']}")
