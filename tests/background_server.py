"""A server that answers in a thread of this process."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Protocol, TypeVar


class Server(Protocol):
    def serve_forever(self, poll_interval: float = ...) -> None: ...

    def shutdown(self) -> None: ...

    def server_close(self) -> None: ...


AnyServer = TypeVar("AnyServer", bound=Server)


@contextlib.contextmanager
def answering_in_background(server: AnyServer) -> Iterator[AnyServer]:
    """Let the server answer until the end of the block, which closes it."""
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
