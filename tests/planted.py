"""Secrets for an environment, each with a word that occurs nowhere else, and a search for that word."""

from collections.abc import Iterable
from pathlib import Path

WORD = "pl4nted"  # in each secret

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": f"{WORD}-aws-secret/+",
    "AWS_SESSION_TOKEN": f"{WORD}-aws-session",
    "MLFLOW_TRACKING_USERNAME": f"{WORD}-mlflow-user",
    "MLFLOW_TRACKING_PASSWORD": f"{WORD}-mlflow-password",
    "KFP_TOKEN": f"{WORD}-kfp-token",
    "AWS_ENDPOINT_URL_S3": f"http://user:{WORD}-endpoint@127.0.0.1:9",
}


def leaks(*folders: Path) -> list[str]:
    """The files below these folders with the word in their content or name."""
    files = (file for folder in folders for file in ([folder] if folder.is_file() else folder.rglob("*")))
    return [str(file) for file in files if WORD in file.name or (file.is_file() and has_secret(file.read_bytes()))]


def has_secret(text: bytes | str | Iterable[str]) -> bool:
    """Whether a text, or one of several, holds the word."""
    if isinstance(text, bytes):
        return WORD.encode() in text
    return WORD in text if isinstance(text, str) else any(map(has_secret, text))
