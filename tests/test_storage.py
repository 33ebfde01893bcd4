"""S3 against moto's real server."""

import pytest
from s3_server import S3Server

from autoformer.errors import AutoFormerError
from components.storage import S3Uri, connect, is_uri


def test_a_uri_is_a_bucket_and_a_key() -> None:
    uri = S3Uri.parse("s3://bucket/a/b/")
    assert uri == ("bucket", "a/b") and str(uri) == "s3://bucket/a/b" and str(uri / "c") == "s3://bucket/a/b/c"
    assert is_uri("s3://bucket") and not is_uri("/data/s3")
    for wrong in ("s3://", "/data", "s3:///key"):
        with pytest.raises(AutoFormerError, match="expected s3://bucket/folder"):
            S3Uri.parse(wrong)


def test_the_aws_environment_says_where_s3_is(s3: S3Server) -> None:
    connect().put_object(Bucket=s3.bucket, Key="where/it-is", Body=b"here")
    assert connect().get_object(Bucket=s3.bucket, Key="where/it-is")["Body"].read() == b"here"
