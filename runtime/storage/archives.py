"""Archives in a folder of S3, read by ranges: at random while a model trains, and from beginning to end for an index.

What a local disk has of them (see `copies`) is read there. An archive is told from a changed one by its ETag, on which
every request insists, so that no two halves of a reading are of two archives.
"""

import atexit
import contextlib
import io
import os
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import cache
from typing import Any, NamedTuple, Self

from autoformer.errors import AutoFormerError
from autoformer.images.source import ByteRange
from runtime.storage.cache import LocalCopy, Writer, pieces_of, staging_bytes
from runtime.storage.errors import MissingError
from runtime.storage.objects import Entry, listing
from runtime.storage.ranges import get_range
from runtime.storage.uris import S3Uri

_REQUESTS = 16  # of a process at once
_AHEAD = 8  # pieces of one archive that are read before they are asked for


class S3Archives:
    """The archives that lie directly in a folder of S3: an `autoformer.images.archives.RemoteReader`.

    Picklable, and safe to share between threads and forked processes: what they are is asked once, when it is first
    wanted, and given on; connections and threads are each process's own.
    """

    def __init__(self, folder: str, entries: dict[str, Entry] | None = None) -> None:
        self.uri = S3Uri.parse(folder)
        self._entries, self._copy = entries, None if entries is None else _copy(folder, entries)
        self._waiting: tuple[int, dict[ByteRange, Future[bytes]]] = 0, {}
        self._writer: Writer | None = None

    def __reduce__(self) -> tuple[type[Self], tuple[str, dict[str, Entry] | None]]:
        return type(self), (str(self.uri), self._entries)

    def __str__(self) -> str:
        return str(self.uri)

    def __truediv__(self, name: str) -> "S3Archive":
        return S3Archive(self, name)

    @property
    def entries(self) -> dict[str, Entry]:
        """What lies in the folder, by name. Raises `StorageError` where it cannot be listed."""
        if self._entries is None:
            entries = {entry.name: entry for entry in listing(self.uri) if "/" not in entry.name}
            self._copy = _copy(str(self.uri), entries)
            self._entries = entries
        return self._entries

    def entry(self, archive: str) -> Entry:
        found = self.entries.get(archive)
        if found is None:
            raise MissingError(f"{self.uri / archive}: no such archive; upload it, or mend the location")
        return found

    @property
    def copy(self) -> LocalCopy | None:
        """What the local disk has of the archives; None where nothing may be staged."""
        return self._copy if self.entries else None

    def size_of(self, archive: str) -> int:
        return self.entry(archive).bytes

    def __call__(self, archive: str, offset: int, size: int, /) -> bytes:
        """Fewer bytes than `size` where the archive ends before them."""
        place = ByteRange(archive, offset, size)
        fetched = self._mine().get(place)
        return fetched.result() if fetched else self._read(place)

    def prefetch(self, places: Sequence[ByteRange]) -> None:
        for old in self._mine().values():
            old.cancel()
        wanted = [place for place in places if not (self.copy and self.copy.has(*place))]
        self._waiting = os.getpid(), {place: threads().submit(self._read, place) for place in wanted}

    def reread(self, archive: str, offset: int, size: int) -> bytes:
        if self.copy:
            self.copy.forget(archive, offset, size)
        return self._fetch(ByteRange(archive, offset, size))

    def _mine(self) -> dict[ByteRange, Future[bytes]]:
        """What this process is fetching; a forked one has inherited promises that nobody keeps."""
        process, waiting = self._waiting
        return waiting if process == os.getpid() else {}

    def _read(self, place: ByteRange) -> bytes:
        found = self.copy.read(*place) if self.copy else None
        return self._fetch(place) if found is None else found

    def _fetch(self, place: ByteRange) -> bytes:
        entry = self.entry(place.archive)
        size = min(place.size, entry.bytes - place.offset)
        return get_range(self.uri / place.archive, place.offset, size, entry) if size > 0 else b""

    def pieces(self, archive: str) -> Iterator[bytes]:
        """An archive from beginning to end, read ahead; what the local disk has room for stays there."""
        if self._writer is None and self.copy:
            self._writer = Writer.take(self.copy)
        writer = self._writer
        return in_order(lambda place: self.piece(place, writer), pieces_of(archive, self.size_of(archive)))

    def piece(self, place: ByteRange, writer: Writer | None) -> bytes:
        """One whole piece, which the writer keeps."""
        found = self.copy.read(*place) if self.copy else None
        if found is None:
            found = self._fetch(place)
            if writer:
                writer.keep(place, found)
        return found


def _copy(folder: str, entries: dict[str, Entry]) -> LocalCopy | None:
    archives = [entry for name, entry in entries.items() if name.endswith(".tar")]
    return LocalCopy.open(folder, archives) if archives and staging_bytes() else None


class S3State(NamedTuple):
    """By what a changed archive is told from the one that it was, without reading it."""

    uri: str
    size: int
    etag: str


class S3Archive:
    """One archive, by the verbs of a `Path` that readers of archives know."""

    def __init__(self, archives: S3Archives, name: str) -> None:
        self._archives, self.name = archives, name

    def __str__(self) -> str:
        return str(self._archives.uri / self.name)

    def with_name(self, name: str) -> "S3Archive":
        return S3Archive(self._archives, name)

    def is_file(self) -> bool:
        return self.name in self._archives.entries

    @property
    def size(self) -> int:
        return self._archives.size_of(self.name)

    @property
    def state(self) -> S3State:
        entry = self._archives.entry(self.name)
        return S3State(str(self), entry.bytes, entry.etag)

    def open(self, mode: str = "rb", buffering: int = -1) -> io.BufferedReader:
        """To be read from beginning to end. Raises `AutoFormerError` where there is none."""
        assert mode == "rb", "archives are read"
        return io.BufferedReader(_Stream(self._archives.pieces(self.name), self.size), max(buffering, 1 << 16))

    def read_bytes(self) -> bytes:
        return b"".join(self._archives.pieces(self.name))

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)


class _Stream(io.RawIOBase):
    """Pieces as a file."""

    def __init__(self, pieces: Iterator[bytes], size: int) -> None:
        super().__init__()
        self._pieces, self._left = pieces, size
        self._piece = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._piece and self._left:
            self._piece = memoryview(next(self._pieces))
            self._left -= len(self._piece)
        size = min(len(buffer), len(self._piece))
        buffer[:size] = self._piece[:size]
        self._piece = self._piece[size:]
        return size


class Threads:
    """A pool of daemon threads: a step that is told to stop does not wait for a server that is silent."""

    def __init__(self, count: int) -> None:
        self._tasks: queue.SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = queue.SimpleQueue()
        for _ in range(count):
            threading.Thread(target=self._work, name="s3", daemon=True).start()

    def submit(self, task: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._tasks.put((future, task, arguments))
        return future

    def _work(self) -> None:
        while True:
            self._do(*self._tasks.get())

    @staticmethod
    def _do(future: Future[Any], task: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """In a frame of its own, so that a thread without work holds nothing of the last."""
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(task(*arguments))
        except BaseException as error:  # the caller's to see to
            future.set_exception(error)


def in_order(task: Callable[[ByteRange], bytes], places: Iterable[ByteRange]) -> Iterator[bytes]:
    """What a task gives for each place, in their order, those to come already under way.

    One at first, and twice as many with each that is taken: a look at the beginning costs no more than that.
    """
    ahead: deque[Future[bytes]] = deque()
    window = 1
    for place in places:
        ahead.append(threads().submit(task, place))
        if len(ahead) >= window:
            yield ahead.popleft().result()
            window = min(2 * window, _AHEAD)
    while ahead:
        yield ahead.popleft().result()


def threads() -> Threads:
    """Those of this process."""
    return _threads(os.getpid())


@cache
def _threads(process: int) -> Threads:
    return Threads(_REQUESTS)


RUNNING: list[subprocess.Popen[bytes]] = []


def start_staging(archives: S3Archives, names: Sequence[str]) -> None:
    """Begin to bring archives to the local disk; reads go there as soon as a piece is. Returns at once."""
    copy = archives.copy
    if copy is None or not copy.missing(names) or Writer.busy():
        return
    command = [sys.executable, "-m", "runtime.storage.archives", str(archives.uri), *names]
    if not RUNNING:
        atexit.register(stop_staging)
    RUNNING.append(subprocess.Popen(command, stdin=subprocess.PIPE))  # which ends with this process, however that ends


def stop_staging() -> None:
    """End what this process has started."""
    while RUNNING:
        with RUNNING.pop() as process:
            process.terminate()


def stage(archives: S3Archives, names: Sequence[str]) -> None:
    """Bring what is missing of some archives, as far as there is room."""
    copy = archives.copy
    writer = Writer.take(copy) if copy else None
    if copy is None or writer is None:
        return
    with contextlib.suppress(AutoFormerError), contextlib.closing(writer):  # who reads the images is told
        for _ in in_order(lambda piece: archives.piece(piece, writer), copy.missing(names)):
            if writer.full:
                break


def main(argv: Sequence[str]) -> int:
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    stage(S3Archives(argv[0]), argv[1:])
    return 0


def _end_with_the_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
