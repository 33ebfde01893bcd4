"""A proxy before an S3 server that does to requests and answers what networks and servers do.

It also does what S3 does and moto does not: it refuses a body whose sha256 is not the one that the request names.
"""

import base64
import contextlib
import hashlib
import http.client
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

from background_server import answering_in_background
from s3_server import S3Server

Kind = Literal["answer", "reset", "reset in the body", "cut off", "shortened", "corrupted", "corrupted on its way"]
STATUS = {
    "InternalError": 500, "ServiceUnavailable": 503, "SlowDown": 503, "ExpiredToken": 400, "AccessDenied": 403,
    "InvalidAccessKeyId": 403, "NoSuchBucket": 404, "BadDigest": 400, "NoSuchUpload": 404, "NotImplemented": 501,
    "PreconditionFailed": 412,
}  # fmt: skip


@dataclass
class Fault:
    """What happens to the next `times` requests whose line, `GET /bucket/key?query`, holds `where`, after `skip`."""

    kind: Kind
    where: str = ""
    code: str = ""  # of an answer that is an error
    times: int = 10**9
    skip: int = 0

    def takes(self, line: str) -> bool:
        if self.where not in line or self.times == 0:
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times -= 1
        return True


class FaultyProxy:
    """`lines`: of the requests that have come. `faults`: the first that takes a request decides."""

    def __init__(self, server: S3Server) -> None:
        self.behind = server
        self.lock = threading.Lock()
        self.forget()
        self._http = _Server(("127.0.0.1", 0), _Handler)
        self._http.proxy = self
        self.server = S3Server(f"http://127.0.0.1:{self._http.server_port}", server.bucket)

    def forget(self) -> None:
        """Be a proxy without faults."""
        self.faults: list[Fault] = []
        self.lines: list[str] = []
        self.before: Callable[[str], None] = lambda line: None  # is told of each request, in its thread
        self.is_down = False

    def fault_of(self, line: str) -> Fault | None:
        with self.lock:
            self.lines.append(line)
            return next((fault for fault in self.faults if fault.takes(line)), None)

    def count(self, *words: str) -> int:
        """How many requests have come whose line holds all these words."""
        return sum(all(word in line for word in words) for line in self.lines)

    @contextlib.contextmanager
    def running(self) -> "Iterator[FaultyProxy]":
        with answering_in_background(self._http):
            yield self


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    proxy: FaultyProxy


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def handle_any(self) -> None:
        proxy, line = self.server.proxy, f"{self.command} {self.path}"
        body = self._body()
        if proxy.is_down:
            self._reset()
            return
        proxy.before(line)
        fault = proxy.fault_of(line)
        if fault is None:
            self._pass_on(body)
        elif fault.kind == "answer":
            self._refuse(fault.code)
        elif fault.kind == "reset":
            self._reset()
        elif fault.kind == "corrupted on its way":
            self._pass_on(body[:-1] + bytes([body[-1] ^ 1]))
        else:
            self._pass_on(body, fault.kind)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any  # noqa: N815 - names that http.server looks for

    def _body(self) -> bytes:
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _pass_on(self, body: bytes, kind: Kind | None = None) -> None:
        named = self.headers.get("x-amz-checksum-sha256")
        if named and self.command == "PUT" and base64.b64encode(hashlib.sha256(body).digest()).decode() != named:
            self._refuse("BadDigest")
            return
        parts = urlsplit(self.server.proxy.behind.endpoint)
        connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=30)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("expect", "host")}
        connection.request(self.command, self.path, body, headers | {"Host": parts.netloc})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        self._answer(answer, content, kind)

    def _answer(self, answer: http.client.HTTPResponse, content: bytes, kind: Kind | None) -> None:
        length = len(content)
        if kind == "shortened":
            content = content[: length // 2]
            length = len(content)
        elif kind == "corrupted":
            content = bytes([content[0] ^ 1]) + content[1:]
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        given = answer.getheader("Content-Length", "0")
        self.send_header("Content-Length", given if self.command == "HEAD" else str(length))
        self.end_headers()
        if kind in ("reset in the body", "cut off"):
            self.wfile.write(content[: length // 2])
            self.wfile.flush()
            if kind == "reset in the body":
                self._reset()
            self.close_connection = True
        else:
            self.wfile.write(content)

    def _refuse(self, code: str) -> None:
        text = f"<Error><Code>{code}</Code><Message>as the test wants it</Message></Error>".encode()
        self.send_response_only(STATUS[code])
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def _reset(self) -> None:
        """Close without a farewell: the other side sees a connection that is reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()
