"""A real HTTP server that answers every request in one faulty way."""

import contextlib
import itertools
import time
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from background_server import answering_in_background

MB = 2**20


def _end_with_connection(handler: "Handler") -> Iterator[bytes]:
    handler.end_headers()
    return itertools.repeat(b"a" * MB)


def _without_end(handler: "Handler") -> Iterator[bytes]:
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    return itertools.repeat(b"100000\r\n" + b"a" * MB + b"\r\n")


def _bomb(handler: "Handler") -> Iterator[bytes]:
    """3 GB in 3 MB."""
    handler.send_header("Content-Encoding", "gzip")
    handler.end_headers()
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    return (packer.compress(b"a" * MB) for _ in range(3000))


def _slow(handler: "Handler") -> Iterator[bytes]:
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    return (time.sleep(0.05) or b"{" for _ in itertools.count())


def _slow_chunks(handler: "Handler") -> Iterator[bytes]:
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    return (time.sleep(0.05) or b"1\r\n{\r\n" for _ in itertools.count())


def _slow_header(handler: "Handler") -> Iterator[bytes]:
    handler.flush_headers()
    return (time.sleep(0.05) or b"a" for _ in itertools.count())  # of one name


ENDLESS = {"to the end of the connection": _end_with_connection, "in chunks": _without_end, "a bomb of gzip": _bomb}
SLOW = {"of a known length": _slow, "in chunks": _slow_chunks, "in a header": _slow_header}
Answer = Callable[["Handler"], Iterator[bytes]]


class Handler(BaseHTTPRequestHandler):
    """The handler of one request."""

    protocol_version = "HTTP/1.1"
    server: "_Server"

    def log_message(self, *_: object) -> None:
        pass

    def handle_any(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.count += 1
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.send_response(self.server.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Connection", "close")
            for piece in self.server.answer(self):
                self.wfile.write(piece)

    do_GET = do_PUT = do_POST = do_HEAD = handle_any  # noqa: N815 - names that http.server looks for


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    answer: Answer
    status: int
    count = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def answering(answer: Answer, status: int = 200) -> Iterator[_Server]:
    """The server, on a port of its own."""
    server = _Server(("127.0.0.1", 0), Handler)
    server.answer, server.status = answer, status
    with answering_in_background(server):
        yield server
