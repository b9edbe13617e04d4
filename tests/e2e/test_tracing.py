"""One trace goes from Envoy through proxy and ledger to the provider, and holds no key, question or answer."""

import json

QUESTION = "What does nobody else need to know?"
CALLER = "0af7651916cd43dd8448eb211c80319c"


def test_one_trace_goes_through_all_that_a_call_passes(suite, collector, eventually):
    customer = suite.customer(credit_nanos=10**10)
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 8}
    headers = {"traceparent": f"00-{CALLER}-b7ad6b7169203331-01"}
    answer = suite.post("/v1/chat/completions", body, customer.key, headers=headers)
    assert answer.status == 200
    by_query = f"/v1beta/models/gemini-1.5-flash:generateContent?key={customer.key}"
    asked = {"contents": [{"role": "user", "parts": [{"text": QUESTION}]}]}
    assert suite.post(by_query, asked, headers=headers).status == 200

    def spans():
        return [span for span in list(collector.spans) if span.trace == CALLER]

    # Of each call: the gateway's, the proxy's, the provider's, and the ledger's of its hold and of its settlement.
    eventually(lambda: len(spans()) >= 10)
    found = spans()
    assert {span.service for span in found} == {"tollkeeper-gateway", "tollkeeper-proxy", "tollkeeper-ledger"}
    by_id = {span.span: span for span in found}
    roots = [span for span in found if span.parent == "b7ad6b7169203331"]
    assert {span.service for span in roots} == {"tollkeeper-gateway"}
    for span in found:
        if span not in roots:
            assert by_id[span.parent].trace == CALLER
    assert {span.name for span in found} >= {"provider openai", "tollkeeper.ledger.v1.LedgerService/Apply"}
    told = json.dumps([vars(span) for span in collector.spans])
    for secret in (customer.key, QUESTION, answer.body["choices"][0]["message"]["content"]):
        assert secret not in told
