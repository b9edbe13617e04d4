"""An endpoint for alerts: how one is made for an account, and how it verifies what comes (Standard Webhooks)."""

import base64
import hashlib
import hmac
import json
import os
import time

import grpc
from tollkeeper.subscriptions.v1 import operator_service_pb2 as pb
from tollkeeper.subscriptions.v1.operator_service_pb2_grpc import AlertServiceStub

TOLERANCE_SECONDS = 300


def verified(headers, body, secret):
    """What an alert says. Raises ValueError for what was not signed with the secret, just now."""
    sent = int(headers["webhook-timestamp"])
    if abs(time.time() - sent) > TOLERANCE_SECONDS:
        raise ValueError("signed too long ago")
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{headers['webhook-id']}.{sent}.".encode() + body
    expected = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    if not any(hmac.compare_digest(expected, given) for given in headers["webhook-signature"].split()):
        raise ValueError("not signed with our secret")
    return json.loads(body)


channel = grpc.insecure_channel(os.environ["TOLLKEEPER_SUBSCRIPTIONS_ADDR"])
token = (("authorization", "Bearer " + os.environ["TOLLKEEPER_SERVICE_TOKEN"]),)
alerts = AlertServiceStub(channel)
request = pb.CreateAlertEndpointRequest(account_id="demo", url="https://alerts.example.com/toll", types=["limit_80"])
endpoint = alerts.CreateAlertEndpoint(request, metadata=token)
print("made", endpoint.endpoint_id, "with a secret of", len(endpoint.signing_secret), "characters, shown this once")

# As one will come, signed with that secret. An alert may come more than once: its `webhook-id` says which it is.
body = json.dumps({"type": "alert.limit_80", "data": {"accountId": "demo"}}).encode()
now = int(time.time())
key = base64.b64decode(endpoint.signing_secret.removeprefix("whsec_"))
signature = base64.b64encode(hmac.new(key, f"alert-1.{now}.".encode() + body, hashlib.sha256).digest()).decode()
headers = {"webhook-id": "alert-1", "webhook-timestamp": str(now), "webhook-signature": f"v1,{signature}"}
print(verified(headers, body, endpoint.signing_secret)["type"])
try:
    verified(headers, body + b" ", endpoint.signing_secret)
except ValueError as error:
    print("altered:", error)

gone = pb.DeleteAlertEndpointRequest(account_id="demo", endpoint_id=endpoint.endpoint_id)
alerts.DeleteAlertEndpoint(gone, metadata=token)
