"""S3: data, artifacts and checkpoints. Only this package imports boto3, inside functions.

`AUTOFORMER_STORE`, `s3://bucket/folder`, is the store for a run's output; without it everything stays in files.

| Module | |
|---|---|
| `client`, `errors`, `objects` | addresses, connection, one-line errors; objects |
| `uploads`, `downloads`, `folders` | transfer of files and folders: whole or not at all, verified, resumable |
| `data`, `archives`, `cache` | data folders, archives read by ranges, their cache on the local disk |
| `artifacts`, `mirror` | weights and work in progress of the steps |
"""

from runtime.storage.client import S3Uri, connect, is_uri
from runtime.storage.folders import download_folder, upload_folder
from runtime.storage.objects import exists

__all__ = ["S3Uri", "connect", "download_folder", "exists", "is_uri", "upload_folder"]
