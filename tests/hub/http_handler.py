"""The HTTP side of the test Hub: requests to pages, who asks, and what goes wrong on purpose."""

import contextlib
import json
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub.repositories import HubError, User


@dataclass(frozen=True)
class Hold:
    """A request that a test holds: it waits until `over`."""

    began: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Fault:
    """What goes wrong with a request: one of cut connection, HTTP status, delay, hold."""

    method: str
    path: str  # a part of the request's path
    cut_after: int | None = None  # bytes of the body that are read before the connection is reset
    status: int | None = None
    code: str | None = None  # the Hub's word for what is wrong, said beside the status
    message: str = "injected"
    retry_after: int | None = None  # seconds, said beside the status
    delay_s: float = 0.0
    hold: Hold | None = None


class HubHandler(BaseHTTPRequestHandler):
    """Finds the page among `routes`, (HTTP methods, pattern of the path, method) in their order."""

    protocol_version = "HTTP/1.1"
    routes: tuple = ()

    def log_message(self, *arguments: object) -> None:
        """Nothing: `Hub.requests` keeps what was asked."""

    def answer(self) -> None:
        split = urlsplit(self.path)
        self.query = parse_qs(split.query)
        fault = self._fault(split.path)
        if fault is not None:
            time.sleep(fault.delay_s)
            if fault.hold is not None:
                fault.hold.began.set()
                fault.hold.over.wait(120)
            if fault.cut_after is not None:
                self.rfile.read(fault.cut_after)
                self.server.requests.append((self.command, split.path, None))
                self._reset_connection()
                return
        body = self._body()
        try:
            if fault is not None and fault.status is not None:
                raise HubError(fault.status, fault.message, fault.code)
            self.user = self._user()
            for methods, pattern, method in self.routes:
                match = re.fullmatch(pattern, split.path)
                if match and self.command in methods:
                    names = {name: unquote(text) for name, text in match.groupdict().items() if text is not None}
                    with self.server.lock:
                        method(self, body, **names)
                    return
            raise HubError(404, f"no such page: {self.command} {split.path}")
        except HubError as error:
            headers = {"X-Error-Message": error.message}
            if error.code:
                headers["X-Error-Code"] = error.code
            if fault is not None and fault.retry_after is not None:
                headers["Retry-After"] = str(fault.retry_after)
            self.send(error.status, {"error": error.message, "errors": [{"message": error.message}]}, headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def send(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        """A JSON value, or bytes as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        self.server.requests.append((self.command, urlsplit(self.path).path, status))
        self.send_response(status)
        for name, value in ({"Content-Type": kind, "Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _fault(self, path: str) -> Fault | None:
        with self.server.lock:
            for fault in self.server.faults:
                is_long_enough = (fault.cut_after or -1) < int(self.headers.get("Content-Length", 0))
                if fault.method == self.command and fault.path in path and is_long_enough:
                    self.server.faults.remove(fault)
                    return fault
        return None

    def _reset_connection(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):  # the client may be gone
            # A zero linger makes close() send a reset, as a broken line does, and not an orderly end.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.shutdown(socket.SHUT_RD)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _user(self) -> User | None:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if not scheme:
            return None
        if token not in self.server.users:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.server.users[token]
