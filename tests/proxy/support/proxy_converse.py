"""Owns Converse for tests: events in their frames, and a server of OpenAI's form that asks a Converse server."""

import contextlib
import http.client
import itertools
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import orjson

from deploy.local.sandbox.provider import eventstream
from services.kit.refusals import InvalidArgument
from services.proxy import converse

CAP = 4096
SIGNED = {
    "authorization": "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20260101/us-east-1/bedrock/aws4_request, "
    "SignedHeaders=host;x-amz-date, Signature=" + "0" * 64,
    "x-amz-date": "20260101T000000Z",
    "content-type": "application/json",
}
HEAD = {"model": "claude", "identifier": "chatcmpl-1", "created": 1_767_225_600}


def event(kind, **members):
    return eventstream.event(kind, orjson.dumps(members))


def delta(index, **members):
    return event("contentBlockDelta", contentBlockIndex=index, delta=members)


def stop(index):
    return event("contentBlockStop", contentBlockIndex=index)


def chunks_of(raw, split=None):
    """The chunks of these bytes, fed in pieces that end where `split` says; and the stream."""
    stream = converse.ConverseStream(**HEAD)
    edges = sorted({0, len(raw), *(place for place in split or () if place < len(raw))})
    chunks = []
    for start, end in itertools.pairwise(edges):
        chunks += stream.feed(raw[start:end])
    return chunks, stream


def deltas(chunks):
    return [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]


@contextlib.contextmanager
def openai_server(converse_url):
    """The address of a server that answers chat completions with what the Converse server at `converse_url` says."""
    with ThreadingHTTPServer(("127.0.0.1", 0), OpenAIHandler) as server:
        server.converse_url = converse_url
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            thread.join()


class OpenAIHandler(BaseHTTPRequestHandler):
    """Takes a chat completion, asks Converse, and answers as OpenAI does."""

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = orjson.loads(self.rfile.read(int(self.headers["content-length"])))
        try:
            sent = orjson.dumps(converse.to_converse(body, body.get("max_tokens") or CAP))
        except InvalidArgument as error:
            self._whole(400, orjson.dumps({"error": {"message": str(error)}}))
            return
        streamed = body.get("stream") is True
        address = f"{self.server.converse_url}/{converse.model_path(body['model'], streamed)}"
        request = urllib.request.Request(address, data=sent, headers=SIGNED, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                if streamed:
                    self._stream(answer)
                else:
                    self._whole(200, orjson.dumps(converse.completion(orjson.loads(answer.read()), **HEAD)))
        except urllib.error.HTTPError as error:
            with error:
                kind = error.headers.get("x-amzn-errortype", "")
                self._whole(error.code, converse.error_body(error.code, kind, error.read()))

    def _whole(self, status, body):
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, answer):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        stream = converse.ConverseStream(**HEAD)
        with contextlib.suppress(http.client.IncompleteRead):
            while piece := answer.read1(65536):
                for chunk in stream.feed(piece):
                    self.wfile.write(b"data: " + orjson.dumps(chunk) + b"\n\n")
        if stream.finished:
            self.wfile.write(b"data: [DONE]\n\n")
