"""What S3 says of the objects below a folder, without reading them."""

from autoformer.errors import AutoFormerError
from autoformer.files import hash_value
from components.storage.client import connect
from components.storage.uris import S3Uri


def listing_hash(folder: S3Uri) -> str:
    """Hash of names, sizes and ETags, which S3 makes of what an object holds.

    Raises:
        AutoFormerError: S3 does not answer, refuses, or has nothing there.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    prefix = f"{folder.key}/" if folder.key else ""
    pages = connect().get_paginator("list_objects_v2").paginate(Bucket=folder.bucket, Prefix=prefix)
    try:
        found = [
            [each["Key"].removeprefix(prefix), each["Size"], each["ETag"]]
            for page in pages
            for each in page.get("Contents", ())
        ]
    except (BotoCoreError, ClientError) as error:
        raise AutoFormerError(f"{folder}: cannot be listed: {error}") from None
    if not found:
        raise AutoFormerError(f"{folder}: nothing is there; upload the data, or name the folder that has it")
    return hash_value(sorted(found))
