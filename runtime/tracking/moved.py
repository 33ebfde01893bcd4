"""Repair a moved or copied sqlite store, in which MLflow keeps absolute addresses of artifacts."""

import contextlib
import sqlite3
from pathlib import Path
from urllib.parse import unquote

FOLDER = "mlruns"  # beside the database file
_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def follow(file: Path) -> Path | None:
    """Change the artifact addresses in a database to the artifacts beside it.

    Nothing changes if there are none, for example if only the database was copied.

    Returns:
        The folder in the former addresses; None if they were right.
    """
    here = file.absolute().parent / FOLDER
    if not file.exists() or not here.is_dir():
        return None
    with contextlib.closing(sqlite3.connect(file, timeout=60)) as database, database:
        try:
            rows = database.execute("SELECT artifact_location FROM experiments").fetchall()
        except sqlite3.OperationalError:  # a new file without tables
            return None
        before = None
        places = {Path(unquote(location.removeprefix("file://"))) for (location,) in rows}
        for was in {place.parent for place in places if (here / place.name).is_dir()}:
            if was.name != FOLDER or not was.is_absolute() or _is_same(was, here):
                continue
            before = was.parent
            for old, new in ((was.as_uri(), here.as_uri()), (str(was), str(here))):
                for table, column in _COLUMNS:
                    database.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                        (new, len(old) + 1, len(old) + 1, f"{old}/"),
                    )
        return before


def _is_same(one: Path, other: Path) -> bool:
    """Whether both paths are the same folder, for example through a link."""
    try:
        return one.samefile(other)
    except OSError:
        return False
