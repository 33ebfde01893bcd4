"""Names of things in S3."""

from typing import NamedTuple, Self

from autoformer.errors import AutoFormerError

SCHEME = "s3://"


class S3Uri(NamedTuple):
    """`s3://bucket/key`; the key of a folder has no slash at its end."""

    bucket: str
    key: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises `AutoFormerError` where the text names no bucket."""
        bucket, _, key = text.removeprefix(SCHEME).partition("/")
        if not is_uri(text) or not bucket:
            raise AutoFormerError(f"{text}: expected s3://bucket/folder")
        return cls(bucket, key.strip("/"))

    @classmethod
    def of(cls, uri: "S3Uri | str") -> "S3Uri":
        """The same, or its text parsed."""
        return cls.parse(uri) if isinstance(uri, str) else uri

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.key}".rstrip("/")

    def __truediv__(self, name: str) -> Self:
        return type(self)(self.bucket, f"{self.key}/{name}".strip("/"))


def is_uri(text: object) -> bool:
    """Whether a text names something in S3, not a path."""
    return str(text).startswith(SCHEME)
