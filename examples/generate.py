"""Over gRPC: a model call, and one whose answer comes as a stream, for an internal service; the account named pays."""

import os

import grpc
from tollkeeper.proxy.v1 import generate_service_pb2 as pb
from tollkeeper.proxy.v1.generate_service_pb2_grpc import GenerateServiceStub

channel = grpc.insecure_channel(os.environ["TOLLKEEPER_PROXY_ADDR"])
token = (("authorization", "Bearer " + os.environ["TOLLKEEPER_SERVICE_TOKEN"]),)
models = GenerateServiceStub(channel)
request = pb.GenerateRequest(
    account_id="demo",
    model="gpt-4o",
    messages=[pb.Message(role="user", text="What is a toll?")],
    max_output_tokens=50,
)
request.options.update({"temperature": 0.2})

answer = models.Generate(request, metadata=token, timeout=60)
print(answer.message.text)
print(answer.credits)

for event in models.StreamGenerate(
    pb.StreamGenerateRequest(account_id="demo", request=request), metadata=token, timeout=60
):
    print(event.text_delta, end="")
print()
