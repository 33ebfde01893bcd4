"""Parts of objects, read without the rest."""

from runtime.storage.client import connect
from runtime.storage.errors import BrokenError, ChangedError, body_of, patiently, told
from runtime.storage.objects import Entry
from runtime.storage.uris import S3Uri


def get_range(uri: S3Uri, offset: int, size: int, known: Entry) -> bytes:
    """So many bytes of an object, as long as it is the one that is known.

    Raises:
        StorageError: it is not there, has changed, or cannot be read.
    """

    def read() -> bytes:
        asked = f"bytes={offset}-{offset + size - 1}"
        with told(uri):
            answer = connect().get_object(Bucket=uri.bucket, Key=uri.key, Range=asked, IfMatch=known.etag)
        with body_of(uri), answer["Body"] as body:
            content = bytes(body.read())
        if len(content) != size:
            raise BrokenError(f"{uri}: {len(content)} bytes come where {size} were asked for, in every try")
        return content

    try:
        return patiently(read)
    except ChangedError:
        raise ChangedError(
            f"{uri}: another object than when it was listed; give the same command again, or run prepare_data again"
        ) from None
