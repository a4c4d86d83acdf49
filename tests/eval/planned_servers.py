"""Servers that do as a test plans, in front of ours or alone."""

import http.client
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from eval.endpoint import EndpointEngine
from eval.endpoint_client import Client


class Proxy(BaseHTTPRequestHandler):
    """Hands requests to our server, or does to them what `server.plan` says: a function of their number and body."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        body, server = json.loads(raw), self.server
        with server.lock:
            number = len(server.seen)
            server.seen.append((time.monotonic(), body, dict(self.headers), self.path))
        plan = server.plan(number, body)
        if plan is None:
            connection = http.client.HTTPConnection("127.0.0.1", server.behind, timeout=60)
            connection.request("POST", self.path, raw, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            plan = answer.status, {}, answer.read()
        if plan == "drop":
            return self.connection.close()
        if plan == "slow":
            time.sleep(4)
            return self.connection.close()
        status, headers, content = plan
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *args):
        pass


@contextmanager
def between(plan, behind=0):
    """A server that does as planned, in front of the one at the port `behind`."""
    server = Server(("127.0.0.1", 0), Proxy)
    server.plan, server.behind, server.seen, server.lock = plan, behind, [], threading.Lock()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown(), server.server_close(), thread.join()


def client(server, **options):
    return Client(f"http://127.0.0.1:{server.server_port}/v1", **options)


def engine_for(server, concurrency=4, say=print, **options):
    return EndpointEngine(f"http://127.0.0.1:{server.server_port}/v1", "miniature", concurrency, say=say, **options)


def says(text, logprobs=None, reason="stop"):
    message = {"role": "assistant", "content": text}
    return 200, {}, {"choices": [{"index": 0, "message": message, "logprobs": logprobs, "finish_reason": reason}]}


ERROR = {"error": {"message": "come back later", "type": "server_error", "param": None, "code": None}}
FAULTS = [
    (429, {"Retry-After": "0.05"}, ERROR),
    (500, {}, ERROR),
    "drop",
    (200, {}, b'{"choices": [{"message": {"cont'),
    (200, {"Content-Type": "text/html"}, b"<html><body>Bad gateway</body></html>"),
    (200, {"Content-Length": "9999"}, b'{"choices": []'),
    (503, {}, b""),
    (200, {}, {"choices": []}),
    (200, {}, {"choices": [{"message": {"content": 5}}]}),
    (200, {}, [1, 2]),
    (502, {}, b"<html>" + b"x" * 5000),
    (200, {}, b"[" * 50_000),
]
