"""Secrets as an environment holds them, each with a text that occurs nowhere else; and the search for those texts."""

from collections.abc import Iterable
from pathlib import Path

WORD = "pl4nted"  # in each of them

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": f"{WORD}-aws-secret/+",
    "AWS_SESSION_TOKEN": f"{WORD}-aws-session",
    "MLFLOW_TRACKING_USERNAME": f"{WORD}-mlflow-user",
    "MLFLOW_TRACKING_PASSWORD": f"{WORD}-mlflow-password",
    "KFP_TOKEN": f"{WORD}-kfp-token",
    "AWS_ENDPOINT_URL_S3": f"http://user:{WORD}-endpoint@127.0.0.1:9",
}


def leaks(*folders: Path) -> list[str]:
    """The files below these folders that hold a planted text, or have it in their name."""
    files = (file for folder in folders for file in ([folder] if folder.is_file() else folder.rglob("*")))
    return [str(file) for file in files if WORD in file.name or (file.is_file() and told(file.read_bytes()))]


def told(text: bytes | str | Iterable[str]) -> bool:
    """Whether a planted text is in it."""
    if isinstance(text, bytes):
        return WORD.encode() in text
    return WORD in text if isinstance(text, str) else any(map(told, text))
