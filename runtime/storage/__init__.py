"""S3: data, artifacts and checkpoints. The only package that imports boto3, and it does so inside functions.

`AUTOFORMER_STORE`, `s3://bucket/folder`, is the place for what a run makes; without it everything stays in files.

| Module | |
|---|---|
| `client`, `errors`, `objects` | addresses, connection, errors in one line each; objects |
| `uploads`, `downloads`, `folders` | files and folders to S3 and back: whole or not at all, verified, resumable |
| `data`, `archives`, `cache` | data folders, archives that are read by ranges, their cache on the local disk |
| `artifacts`, `mirror` | weights and work in progress of the steps |
"""

from runtime.storage.client import S3Uri, connect, is_uri
from runtime.storage.downloads import download
from runtime.storage.errors import MissingError, StorageError
from runtime.storage.folders import download_folder, upload_folder
from runtime.storage.objects import delete_folder, exists, hash_listing, list_objects
from runtime.storage.uploads import upload

__all__ = [
    "MissingError",
    "S3Uri",
    "StorageError",
    "connect",
    "delete_folder",
    "download",
    "download_folder",
    "exists",
    "hash_listing",
    "is_uri",
    "list_objects",
    "upload",
    "upload_folder",
]
