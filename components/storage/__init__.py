"""S3: data archives, artifacts and checkpoints. The only package that imports boto3, and then inside functions.

`AUTOFORMER_STORE`, `s3://bucket/folder`, names the place of what a run makes; without it everything stays in files.
"""

from components.storage.client import connect
from components.storage.uris import S3Uri, is_uri

__all__ = ["S3Uri", "connect", "is_uri"]
