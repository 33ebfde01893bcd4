"""Mirror a step's work folder to the store, so that the step can resume on another machine.

    <store>/work/<step>/<key>/checkpoint.pt.<hash>   each file, its name followed by a hash of its content
                              _manifest.json         the files of the last complete round
                              _opened.json           the process that last began or resumed the work

Rounds run in the background while the step works. A round uploads the changed files, writes the manifest, and deletes
files that are not in the manifest, so the store always has a consistent state of the folder. If the step is faster than
the network, intermediate states are skipped. A round also uploads files again that a lifecycle rule or another run has
deleted.

An unreachable store does not stop training: it is reported in one line and retried. A step resumes from a local work
folder; without one it fails instead of starting over.
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

from autoformer.errors import UnavailableError
from autoformer.files import FileState
from autoformer.reading import parse_json
from runtime.common.stopping import Stopped, seconds_since_signal
from runtime.storage import folders
from runtime.storage.artifacts import store_uri
from runtime.storage.client import S3Uri, read_object
from runtime.storage.errors import DeniedError, MissingError, StorageError
from runtime.storage.folders import MANIFEST, File
from runtime.storage.objects import abort_uploads, delete, delete_folder, list_objects, write_object
from runtime.storage.uploads import HashedFile, upload

EVERY_SECONDS = 30.0  # between two rounds
AGAIN_SECONDS = 60.0  # after a round that failed
LAST_SECONDS = 10.0  # limit of the last round if the previous round failed
STOPPED_SECONDS = 20.0  # limit of the last round after a signal; ranks are killed after GRACE_SECONDS
OPENED = "_opened.json"
REPLACED_WHOLE = ".pt"  # suffix of files that are only replaced, so a hard link keeps their content
_SNAPSHOT = ".sending"


class Mirror:
    """Keeps a copy of a work folder in the store.

    Args:
        step: the step's name, for messages.
        folder: the work folder.
        uri: address of the copy; without it all methods do nothing.
    """

    def __init__(self, step: str = "", folder: Path = Path(), uri: S3Uri | None = None) -> None:
        self.step, self.folder = step, folder
        self.uri, self._is_off = uri or S3Uri("", ""), uri is None
        self._uploaded: dict[str, tuple[FileState, File]] = {}
        self._condition = threading.Condition()
        self._is_due = self._is_ending = self._is_given_up = False
        self._problem: str | None = None  # failure of the last round
        host = os.environ.get("KFP_POD_NAME") or socket.gethostname()
        self._owner = "/".join(filter(None, [os.environ.get("KFP_RUN_ID"), host, uuid.uuid4().hex[:8]]))
        self._is_signed = False
        self._thread: threading.Thread | None = None
        self._has_ended = threading.Event()  # `Thread.join` may return early after a signal

    def restore(self) -> None:
        """Download the copy if it is newer than the work folder.

        Raises:
            StorageError: the store cannot be read or written, or it is unreachable and the work folder is empty.
        """
        if self._is_off:
            return
        try:
            self._download_newer()
            self._sign()
        except UnavailableError as error:
            if not self._files():
                raise
            self._report(f"{error}; the work in {self.folder} continues")

    def request_upload(self) -> None:
        """Let the background thread upload changed files soon, without waiting for it."""
        if self._is_off:
            return
        with self._condition:
            self._is_due = True
            self._condition.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def flush(self) -> None:
        """Wait until the store has the current state, or until the time limit after a signal; report a failure."""
        try:
            self._end()
        except Stopped:  # the signal came during the wait
            self._end()
            raise
        finally:
            if self._is_given_up:
                late = f"the last checkpoint was not sent within {STOPPED_SECONDS:g} s of the signal"
                self._report(f"{self.uri}: {late}; it is in {self.folder} alone")
            elif self._problem:
                self._report(f"{self._problem}; the last checkpoint is in {self.folder} alone")

    def clear(self) -> None:
        """Delete the copy after the result is published, unless another process has opened it since."""
        if self._is_off:
            return
        with self._condition:
            self._is_due = False
        self._end()
        try:
            if other := self._other_owner():
                self._report(f"{self.uri}: {other} has opened it since, and it is left to that one")
            else:
                delete_folder(self.uri)
        except StorageError as error:
            self._report(f"{error}; it holds work that is done with, and may be removed")

    def _download_newer(self) -> None:
        incomplete, problem = list[File](), ""
        while (files := self._newer_files()) and files != incomplete:
            try:
                folders.download_files(files, lambda file: self.uri / _key(file), self.folder)
                return
            except MissingError as error:  # another process may just have uploaded a newer state as it ended
                incomplete, problem = files, str(error)
        if incomplete:
            shutil.rmtree(folders.partial_folder(self.folder), ignore_errors=True)
            then = f"the work in {self.folder} continues" if self._files() else "the step starts from the beginning"
            self._report(f"{problem}; the copy there is not whole, and {then}")

    def _newer_files(self) -> list[File]:
        try:
            files, newest_ns = folders.read_manifest(self.uri)
        except MissingError:
            return []
        return files if newest_ns > max((path.stat().st_mtime_ns for path in self._files()), default=0) else []

    def _sign(self) -> None:
        """Record this process as the owner. Fails at the start, not after hours, if the store is not writable."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = json.dumps({"owner": self._owner, "process": os.getpid(), "time": now})
        write_object(f"{line}\n".encode(), self.uri / OPENED)
        self._is_signed = True

    def _other_owner(self) -> str | None:
        try:
            text = read_object(self.uri / OPENED)
        except MissingError:
            return None
        try:
            owner = str(parse_json(text)["owner"])
        except (ValueError, TypeError, KeyError, RecursionError):
            return "somebody"
        return owner if owner != self._owner else None

    def _end(self) -> None:
        """Run the last round, and wait for it."""
        with self._condition:
            self._is_ending = True
            self._condition.notify()
        if self._thread is None:
            return
        limits, since = [LAST_SECONDS] if self._problem else [], seconds_since_signal()
        if since is not None:
            limits.append(max(0.0, STOPPED_SECONDS - since))
        has_ended = self._has_ended.wait(min(limits, default=None))
        self._is_given_up = since is not None and not has_ended

    def _run(self) -> None:
        try:
            while self._run_round():
                pass
        finally:
            self._has_ended.set()

    def _run_round(self) -> bool:
        """Wait for a request, run a round, and pause; False after the last round."""
        with self._condition:
            self._condition.wait_for(lambda: self._is_due or self._is_ending)
            if not self._is_due:
                return False
            self._is_due, is_last = False, self._is_ending
        problem = None
        try:
            self._upload()
        except Exception as error:  # any failure: the step continues
            problem = str(error) if isinstance(error, StorageError) else f"{type(error).__name__}: {error}"
        if self._is_given_up:  # `flush` has reported it
            return False
        if problem and not self._problem:
            self._report(f"{problem}; the work continues, and its checkpoints are sent later")
        if self._problem and not problem:
            self._report(f"{self.uri}: the checkpoints arrive again")
        self._problem = problem
        if problem and is_last:
            return False
        with self._condition:
            self._is_due |= bool(problem)
            self._condition.wait_for(lambda: self._is_ending, AGAIN_SECONDS if problem else EVERY_SECONDS)
        return True

    def _upload(self) -> None:
        try:
            stored = {entry.name for entry in list_objects(self.uri)}
        except DeniedError:  # permission to write does not include permission to list
            stored = None
        uploaded = {}
        for path in self._files():
            with contextlib.suppress(FileNotFoundError):  # just removed
                state, former = FileState.of(path), self._uploaded.get(path.name)
                is_stored = former and former[0] == state and (stored is None or _key(former[1]) in stored)
                uploaded[path.name] = former if former and is_stored else (state, self._upload_file(path))
        if not self._is_signed or (stored is not None and OPENED not in stored):
            self._sign()
        is_lost = stored is not None and MANIFEST not in stored
        if uploaded == self._uploaded and not (uploaded and is_lost):
            return
        files = [file for _, file in uploaded.values()]
        newest = max((state.mtime_ns for state, _ in uploaded.values()), default=0)
        folders.write_manifest(self.uri, files, newest_ns=newest)
        self._uploaded = uploaded
        with contextlib.suppress(DeniedError):  # permission to write does not include permission to delete
            for name in sorted((stored or set()) - {MANIFEST, OPENED, *map(_key, files)}):
                delete(self.uri / name)
            abort_uploads(self.uri)

    def _upload_file(self, path: Path) -> File:
        snapshot = path.with_name(f"{_SNAPSHOT}-{path.name}")
        snapshot.unlink(missing_ok=True)
        try:
            _copy_or_link(path, snapshot)
            hashed = HashedFile.read(snapshot)
            file = File(path.name, hashed.size, hashed.sha256)
            upload(hashed, self.uri / _key(file))
        finally:
            snapshot.unlink(missing_ok=True)
        return file

    def _files(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if path.is_file() and not path.name.startswith("."))

    def _report(self, line: str) -> None:
        from runtime.common.console import print_line

        print_line(f"{self.step}: {line}", sys.stderr)


def _key(file: File) -> str:
    return f"{file.name}.{file.sha256[:16]}"


def _copy_or_link(path: Path, snapshot: Path) -> None:
    if path.suffix == REPLACED_WHOLE:
        with contextlib.suppress(OSError):  # no hard links here; `copyfile` reports a missing file
            snapshot.hardlink_to(path)
            return
    shutil.copyfile(path, snapshot)


@contextlib.contextmanager
def mirrored(step: str, folder: Path) -> Iterator[Mirror]:
    """The restored mirror of a work folder; without AUTOFORMER_STORE, a mirror that does nothing.

    If the block fails, its exit waits for the last upload. So enter it before contexts that must end quickly.

    Raises:
        StorageError: before any work.
    """
    store = store_uri()
    mirror = Mirror(step, folder, store and store / f"work/{step}/{folder.name}")
    mirror.restore()
    try:
        yield mirror
    except BaseException:
        mirror.flush()
        raise
