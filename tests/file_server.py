"""A server of files on this machine that knows ranges, breaks off, changes its files and lies."""

import contextlib
import http.server
import threading


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.files`; a path in `server.breaks` is cut after so many bytes, once for each number."""

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Range")))
        content = self.server.files.get(self.path)
        if content is None:
            return self.send_error(404)
        if lie := self.server.lies.get(self.path):
            status, headers, body = lie(self.headers.get("Range"), content)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            return self.wfile.write(body)
        etag, start = f'"{hash(content)}"', 0
        asked = self.headers.get("Range")
        if asked and self.headers.get("If-Range") == etag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("Content-Type", self.server.types.get(self.path, "application/octet-stream"))
        self.send_header("ETag", etag)
        self.end_headers()
        breaks = self.server.breaks.get(self.path)
        self.wfile.write(content[start : start + breaks.pop(0)] if breaks else content[start:])

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def file_server(handler=Handler):
    """A server that runs; what it serves and how is set in its attributes."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        running.files, running.breaks, running.types, running.lies, running.asked = {}, {}, {}, {}, []
        running.url = f"http://127.0.0.1:{running.server_port}"
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield running
        running.shutdown()
