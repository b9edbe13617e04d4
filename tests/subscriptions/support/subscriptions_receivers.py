"""Owns who alerts are sent to: an HTTP endpoint that answers as it is told, and a small mail server."""

import socketserver
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def _running(server):
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass(frozen=True)
class Received:
    path: str
    headers: dict
    body: bytes


class Receiver:
    """`requests` is what came, in order. `answer` is a status, or takes the handler and answers as it likes.

    `gate`: an Event that every answer waits for.
    """

    def __init__(self):
        self.requests = []
        self.answer = 204
        self.gate = None
        self.arrived = threading.Semaphore(0)
        self.url = ""

    @contextmanager
    def serve(self, tls=None, name="127.0.0.1"):
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                receiver.requests.append(Received(self.path, {}, b""))
                self.plain(200)

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {key.lower(): value for key, value in self.headers.items()}
                receiver.requests.append(Received(self.path, headers, body))
                receiver.arrived.release()
                if receiver.gate is not None:
                    receiver.gate.wait(20)
                if callable(receiver.answer):
                    receiver.answer(self)
                else:
                    self.plain(receiver.answer)

            def plain(self, status, **headers):
                self.send_response(status)
                self.send_header("content-length", "0")
                for key, value in headers.items():
                    self.send_header(key, value)
                self.end_headers()

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.handle_error = lambda *_: None  # a sender that hangs up is what some tests are about
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        with _running(server) as port:
            self.url = f"{'http' if tls is None else 'https'}://{name}:{port}"
            try:
                yield self
            finally:
                if self.gate is not None:
                    self.gate.set()


@dataclass(frozen=True)
class Letter:
    sender: str
    recipients: list
    text: str


class _Session(socketserver.StreamRequestHandler):
    """One conversation: a verb and what follows it, each with its answer."""

    server_of_mail = None

    def handle(self):
        self.sender, self.recipients = "", []
        self.say("220 here")
        answer = ""
        while not answer.startswith(("221", "421")) and (line := self.rfile.readline(2000).decode().strip()):
            verb, _, rest = line.partition(" ")
            answer = getattr(self, f"on_{verb.lower()}", self.on_other)(
                rest.partition(":")[2].split(">")[0].lstrip("<")
            )
            self.say(answer)

    def on_mail(self, address):
        self.sender, self.recipients = address, []
        return "250 fine"

    def on_rcpt(self, address):
        if self.server_of_mail.refuses:
            return "451 not now"
        self.recipients.append(address)
        return "250 fine"

    def on_data(self, _):
        self.say("354 go on")
        lines = []
        while (line := self.rfile.readline(10_000)) not in {b".\r\n", b""}:
            lines.append(line.removeprefix(b"."))
        self.server_of_mail.letters.append(Letter(self.sender, self.recipients, b"".join(lines).decode()))
        return "250 fine"

    def on_quit(self, _):
        return self.server_of_mail.farewell

    def on_other(self, _):
        return "250 fine"

    def say(self, words):
        self.wfile.write(f"{words}\r\n".encode())


class MailServer:
    """The part of SMTP (RFC 5321) that a letter needs. `letters` is what came; `refuses` answers 451 to recipients."""

    def __init__(self):
        self.letters = []
        self.refuses = False
        self.farewell = "221 bye"
        self.port = 0

    @contextmanager
    def serve(self):
        mail = self

        class Session(_Session):
            server_of_mail = mail

        server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Session)
        with _running(server) as self.port:
            yield self
