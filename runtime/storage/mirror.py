"""A step's work in progress in the store, so that a step whose machine is gone goes on at another one.

    <store>/work/<step>/<key>/checkpoint.pt.<hash>   each file under a name of its own content
                              _manifest.json         the files of the last round that was completed
                              _opened.json           who was the last to begin, or go on, there

Rounds go on in the background while the step works: what has changed since the last one is sent, the manifest is
written, and what it names no more is removed. So what is there is always the folder as it was at one moment. There is
one round at a time, of the folder as it is then: work that goes faster than the network skips what lies between. What
somebody else has removed, a rule of the bucket or another run of the same work, the next round sends again.

S3 that is away stops no training: it is said in one line, and tried again. The work that is in files already goes on
too; but a step that has none does not begin anew as long as it cannot ask.
"""

import contextlib
import json
import os
import shutil
import socket
import sys
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autoformer.files import FileState
from runtime.common.stopping import Stopped, seconds_since_signal
from runtime.storage.artifacts import store
from runtime.storage.errors import AwayError, BrokenError, DeniedError, MissingError, StorageError
from runtime.storage.folders import (
    MANIFEST,
    File,
    bring,
    partial_of,
    read_files,
    read_manifest,
    read_object,
    write_manifest,
)
from runtime.storage.objects import abort, delete, delete_folder, listing, unfinished
from runtime.storage.uploads import Content, put, send
from runtime.storage.uris import S3Uri

EVERY_SECONDS = 30.0  # between the end of a round and the next
AGAIN_SECONDS = 60.0  # after one that failed
LAST_SECONDS = 10.0  # for a last try at the end, where the one before has failed
STOPPED_SECONDS = 20.0  # after a signal, till the wait for the last round ends; a rank is killed after GRACE_SECONDS
OPENED = "_opened.json"
REPLACED_WHOLE = ".pt"  # ending of files that are never written to: a second name keeps their content
_SNAPSHOT = ".sending"


class Mirror:
    """What keeps the store's copy of a work folder.

    Args:
        step: its name, for what is said.
        folder: the work folder.
        uri: of the copy; None for none, and then nothing happens.
    """

    def __init__(self, step: str = "", folder: Path = Path(), uri: S3Uri | None = None) -> None:
        self.step, self.folder, self.uri = step, folder, uri
        self._sent: dict[str, tuple[FileState, File]] = {}
        self._condition = threading.Condition()
        self._is_due = self._is_ending = self._is_given_up = False
        self._problem: str | None = None
        self._owner, self._is_signed = _owner(), False
        self._thread: threading.Thread | None = None
        self._has_ended = threading.Event()

    def recall(self) -> None:
        """Fill the work folder from the store, where what is there is newer, or the only one.

        Raises:
            StorageError: one line: the store cannot be read or written to. One that is away is no error where the
                folder has work.
        """
        if self.uri is None:
            return
        try:
            self._recall(self.uri)
            self._sign(self.uri)
        except (AwayError, BrokenError) as error:
            if not self._files():
                raise
            self._tell(f"{error}; the work that is in {self.folder} goes on")

    def request_upload(self) -> None:
        """Let there be a round, soon."""
        if self.uri is None:
            return
        with self._condition:
            self._is_due = True
            self._condition.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, args=(self.uri,), daemon=True)
            self._thread.start()

    def settle(self) -> None:
        """Wait until the folder is in the store as it is now; after a signal, as long as there is time for it.

        Where that fails it is said.
        """
        try:
            self._end()
        except Stopped:  # the signal has come only now
            self._end()
            raise
        finally:
            self._tell_end()

    def _tell_end(self) -> None:
        if self._is_given_up:
            late = f"the last checkpoint was not sent within {STOPPED_SECONDS:g} s of the signal"
            self._tell(f"{self.uri}: {late}; it is in {self.folder} alone")
        elif self._problem:
            self._tell(f"{self._problem}; the last checkpoint is in {self.folder} alone")

    def clear(self) -> None:
        """Forget the copy, once the result is published."""
        if self.uri is None:
            return
        with self._condition:
            self._is_due = False
        self._end()
        try:
            if other := self._other(self.uri):
                self._tell(f"{self.uri}: {other} has opened it since, and it is left to that one")
            else:
                delete_folder(self.uri)
        except StorageError as error:
            self._tell(f"{error}; it holds work that is done with, and may be removed")

    def _recall(self, uri: S3Uri) -> None:
        dangling, problem = None, ""
        while (found := self._newer(uri)) and found != dangling:
            try:
                bring({file: uri / _key(file) for file in read_files(found)}, self.folder)
                return
            except MissingError as error:  # or another process, which is at its end, has just put a newer one there
                dangling, problem = found, str(error)
        if dangling:
            shutil.rmtree(partial_of(self.folder), ignore_errors=True)
            then = f"the work that is in {self.folder} goes on" if self._files() else "the step begins anew"
            self._tell(f"{problem}; the copy there is not whole, and {then}")

    def _newer(self, uri: S3Uri) -> Any:
        """What the store has, if it is newer than what is here."""
        try:
            found = read_manifest(uri)
        except MissingError:
            return None
        newest = max((file.stat().st_mtime_ns for file in self._files()), default=0)
        return found if int(found.get("newest_ns", 0)) > newest else None

    def _sign(self, uri: S3Uri) -> None:
        """Who is at work there: hours later is too late to find that it cannot be written to."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        put((json.dumps({"owner": self._owner, "process": os.getpid(), "time": now}) + "\n").encode(), uri / OPENED)
        self._is_signed = True

    def _other(self, uri: S3Uri) -> str | None:
        """Who has opened the copy after this one did."""
        try:
            owner = str(json.loads(read_object(uri / OPENED))["owner"])
        except MissingError:
            return None
        except (ValueError, TypeError, KeyError):
            return "somebody"
        return owner if owner != self._owner else None

    def _end(self) -> None:
        with self._condition:
            self._is_ending = True
            self._condition.notify()
        if self._thread is None:
            return
        limits, since = [LAST_SECONDS] if self._problem else [], seconds_since_signal()
        if since is not None:
            limits.append(max(0.0, STOPPED_SECONDS - since))
        has_ended = self._has_ended.wait(
            min(limits, default=None)
        )  # after a join that is interrupted a thread seems so
        self._is_given_up = since is not None and not has_ended

    def _run(self, uri: S3Uri) -> None:
        try:
            self._go_round(uri)
        finally:
            self._has_ended.set()

    def _go_round(self, uri: S3Uri) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._is_due or self._is_ending)
                if not self._is_due:
                    return
                self._is_due, is_last = False, self._is_ending
            problem = self._try(uri)
            if self._is_given_up:
                return
            with self._condition:
                if problem is None:
                    pause = EVERY_SECONDS
                elif is_last:
                    return
                else:
                    self._is_due, pause = True, AGAIN_SECONDS
                self._condition.wait_for(lambda: self._is_ending, pause)

    def _try(self, uri: S3Uri) -> str | None:
        """One round; what went wrong, which is said once, as is its end."""
        problem = None
        try:
            self._round(uri)
        except Exception as error:  # whatever it is, the step's own work goes on
            problem = str(error) if isinstance(error, StorageError) else f"{type(error).__name__}: {error}"
        if self._is_given_up:  # and that has been said
            return problem
        if problem and not self._problem:
            self._tell(f"{problem}; the work goes on, and its checkpoints are sent later")
        if self._problem and not problem:
            self._tell(f"{uri}: the checkpoints arrive again")
        self._problem = problem
        return problem

    def _round(self, uri: S3Uri) -> None:
        there, sent = _names(uri), {}
        for file in self._files():
            with contextlib.suppress(FileNotFoundError):  # it has just been removed
                state = FileState.of(file)
                former = self._sent.get(file.name)
                is_there = former and former[0] == state and (there is None or _key(former[1]) in there)
                sent[file.name] = former if former and is_there else (state, self._send(uri, file))
        if not self._is_signed or _is_gone(OPENED, there):
            self._sign(uri)
        if sent == self._sent and not (sent and _is_gone(MANIFEST, there)):
            return
        newest = max((state.mtime_ns for state, _ in sent.values()), default=0)
        files = [file for _, file in sent.values()]
        write_manifest(uri, {"newest_ns": newest, "files": [file._asdict() for file in files]})
        self._sent = sent
        with contextlib.suppress(DeniedError):  # who may write need not be allowed to tidy up
            _remove((there or set()) - {MANIFEST, OPENED, *(_key(file) for file in files)}, uri)

    def _send(self, uri: S3Uri, file: Path) -> File:
        with _snapshot(file) as still:
            content = Content.of(still)
            sent = File(file.name, content.size, content.sha256)
            send(content, uri / _key(sent), wanted=lambda: not self._is_given_up)
        return sent

    def _files(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return sorted(file for file in self.folder.iterdir() if file.is_file() and not file.name.startswith("."))

    def _tell(self, line: str) -> None:
        from runtime.common.console import print_line

        print_line(f"{self.step}: {line}", sys.stderr)


def _owner() -> str:
    """This process among all that do the same work: its run, its pod or host, and what no other has."""
    host = os.environ.get("KFP_POD_NAME") or socket.gethostname()
    return "/".join([*filter(None, [os.environ.get("KFP_RUN_ID")]), host, uuid.uuid4().hex[:8]])


def _names(uri: S3Uri) -> set[str] | None:
    """What lies there; None where these credentials may not ask."""
    try:
        return {entry.name for entry in listing(uri)}
    except DeniedError:
        return None


def _is_gone(name: str, there: set[str] | None) -> bool:
    return there is not None and name not in there


def _remove(names: set[str], uri: S3Uri) -> None:
    for name in sorted(names):
        delete(uri / name)
    for key, upload_id in unfinished(uri, f"{uri.key}/"):
        abort(S3Uri(uri.bucket, key), upload_id)


def _key(file: File) -> str:
    return f"{file.name}.{file.sha256[:16]}"


@contextlib.contextmanager
def _snapshot(file: Path) -> Iterator[Path]:
    """The content of a file as it is now, whatever becomes of the file."""
    still = file.with_name(f"{_SNAPSHOT}-{file.name}")
    still.unlink(missing_ok=True)
    try:
        if file.suffix != REPLACED_WHOLE or not _linked(file, still):
            shutil.copyfile(file, still)
        yield still
    finally:
        still.unlink(missing_ok=True)


def _linked(file: Path, still: Path) -> bool:
    try:
        still.hardlink_to(file)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without second names
        return False
    return True


@contextlib.contextmanager
def mirrored(step: str, folder: Path) -> Iterator[Mirror]:
    """A work folder that the store has a copy of, filled from there; without AUTOFORMER_STORE, of none.

    Where the step ends early, its last checkpoint is waited for; so enter it before what has to end in any case.

    Raises:
        StorageError: one line, before any work.
    """
    place = store()
    mirror = Mirror(step, folder, place and place / f"work/{step}/{folder.name}")
    mirror.recall()
    try:
        yield mirror
    except BaseException:
        mirror.settle()
        raise
