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
from runtime.storage.folders import download_folder, upload_folder
from runtime.storage.objects import exists

__all__ = ["S3Uri", "connect", "download_folder", "exists", "is_uri", "upload_folder"]
