"""S3: data archives, artifacts and checkpoints. The only package that imports boto3, and then inside functions.

`AUTOFORMER_STORE`, `s3://bucket/folder`, names the place of what a run makes; without it everything stays in files.

| Module | |
|---|---|
| `uris`, `client` | what things are called, and how S3 is reached |
| `failures` | what can go wrong, in one line each |
| `objects` | what is there |
| `uploads`, `downloads`, `folders` | files and folders to S3 and back: whole or not at all, checked, resumable |
| `places` | data folders that lie in S3: which part of them comes to the local disk, and which stays there |
| `ranges`, `archives` | archives read where they lie, by ranges, as the library's loader asks for them |
| `copies`, `staging` | what a local disk has of them, within a limit, and how it comes there while a model trains |
"""

from runtime.storage.client import connect
from runtime.storage.downloads import download
from runtime.storage.errors import ChangedError, DeniedError, MissingError, StorageError
from runtime.storage.folders import download_folder, upload_folder
from runtime.storage.objects import Entry, delete_folder, exists, listing, listing_hash
from runtime.storage.uploads import upload
from runtime.storage.uris import S3Uri, is_uri

__all__ = [
    "ChangedError",
    "DeniedError",
    "Entry",
    "MissingError",
    "S3Uri",
    "StorageError",
    "connect",
    "delete_folder",
    "download",
    "download_folder",
    "exists",
    "is_uri",
    "listing",
    "listing_hash",
    "upload",
    "upload_folder",
]
