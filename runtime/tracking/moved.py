"""A sqlite store whose folder was moved, renamed or copied: MLflow keeps the absolute addresses of artifacts in it."""

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
    """Let the addresses in a database name the artifacts that lie beside it.

    Nothing changes where there are none, as beside a database that was copied alone.

    Returns:
        The folder that the addresses named before; None where they were right.
    """
    here = file.absolute().parent / FOLDER
    if not file.exists() or not here.is_dir():
        return None
    with contextlib.closing(sqlite3.connect(file, timeout=60)) as database, database:
        try:
            rows = database.execute("SELECT artifact_location FROM experiments").fetchall()
        except sqlite3.OperationalError:  # a new file: it has no tables yet
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
    """Whether both paths are one folder, as through a link."""
    try:
        return one.samefile(other)
    except OSError:
        return False
