"""moto's real S3 server, on a port of its own, with what the AWS environment must say to find it."""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import boto3
from moto.server import ThreadedMotoServer

BUCKET = "autoformer-tests"


class S3Server(NamedTuple):
    endpoint: str
    bucket: str

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test-access-key",
            "AWS_SECRET_ACCESS_KEY": "test-secret-key",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def uri(self, name: str) -> str:
        return f"s3://{self.bucket}/{name}"


@contextlib.contextmanager
def s3_server() -> Iterator[S3Server]:
    """The server, with one empty bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    found = S3Server(f"http://{host}:{port}", BUCKET)
    client = boto3.client(
        "s3",
        endpoint_url=found.endpoint,
        aws_access_key_id="test-access-key",
        aws_secret_access_key="test-secret-key",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket=BUCKET)
    try:
        yield found
    finally:
        server.stop()
