"""A proxy in front of a Hub that forwards, stalls or changes answers, over real HTTP."""

import http.client
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

STALLS = ("silent", "headers, then nothing", "bytes now and then", "headers now and then")
HOP = {"connection", "transfer-encoding", "content-length", "keep-alive", "date", "server"}


class Handler(BaseHTTPRequestHandler):
    """Ask the server's `script` what to do with a request; forward it if it says None."""

    protocol_version = "HTTP/1.1"

    def handle_any(self) -> None:
        """Answer a request."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        proxy = self.server.proxy
        proxy.seen.append((self.command, self.path))
        action = proxy.script(self.command, self.path)
        if action in STALLS:
            self.stall(action)
        else:
            self.answer(*(action or self.forward(body)))

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any  # noqa: N815 - http.server's

    def forward(self, body: bytes) -> tuple[int, dict, bytes]:
        """Return the Hub's answer."""
        target = urlsplit(self.server.proxy.target)
        hub = http.client.HTTPConnection(target.netloc, timeout=30)
        hub.request(self.command, self.path, body, dict(self.headers) | {"Host": target.netloc})
        found = hub.getresponse()
        headers, content = dict(found.getheaders()), found.read()
        ports = f":{target.port}/", f":{self.server.server_port}/"  # links lead here again
        if "Location" in headers:
            headers["Location"] = headers["Location"].replace(*ports)
        if "json" in headers.get("Content-Type", ""):
            content = content.replace(*(port.encode() for port in ports))
        return found.status, headers, content

    def answer(self, status: int, headers: dict, body: bytes) -> None:
        """Send an answer."""
        self.send_response(status)
        length = headers.get("Content-Length") if self.command == "HEAD" else None
        for name, value in headers.items():
            if name.lower() not in HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def stall(self, how: str) -> None:
        """Never finish an answer."""
        self.close_connection = True
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9000\r\n"
        try:
            if how != "silent":
                self.wfile.write(head + (b"" if "headers now" in how else b"\r\n"))
            while not self.server.proxy.closing.wait(0.3):
                if "now and then" in how:
                    self.wfile.write(b"X-Slow: 1\r\n" if "headers" in how else b" ")
        except OSError:  # the client has gone
            pass

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""


class Proxy:
    """Serves from a thread, as a context manager; `url` is where."""

    def __init__(self, target: str):
        self.target = target
        self.seen: list[tuple[str, str]] = []
        self.reset()
        self.closing = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.proxy = self
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def reset(self, script: Callable = lambda method, path: None) -> None:
        """Follow another script, or none."""
        self.script = script
        self.seen.clear()

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()
