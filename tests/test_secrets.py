"""Errors show no secrets. test_pipeline and test_outages check that a whole run writes none."""

import subprocess
import sys

import pytest
from botocore.exceptions import EndpointConnectionError
from planted import SECRETS, WORD, has_secret

from runtime.common.redaction import hide
from runtime.tracking.store import reason, without_password

URL = f"https://me:{WORD}-password@mlflow.example:5000/x"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"GET {URL}: refused", "GET https://mlflow.example:5000/x: refused"),
        (f"'http://{WORD}@host', 'b@c'", "'http://host', 'b@c'"),
        (f"s3 at http://user:p@{WORD}@host:9/bucket/a@b", "s3 at http://host:9/bucket/a@b"),
        (f"postgresql+psycopg2://me:{WORD}@db/mlflow", "postgresql+psycopg2://db/mlflow"),
        (f"the token '{SECRETS['KFP_TOKEN']}' has expired", "the token '***' has expired"),
        (f"signed with {SECRETS['AWS_SECRET_ACCESS_KEY']}.", "signed with ***."),
        ("me@example.org wrote s3://bucket/key", "me@example.org wrote s3://bucket/key"),
        ("TOKENIZERS_PARALLELISM is false", "TOKENIZERS_PARALLELISM is false"),
    ],
)
def test_what_is_hidden(text: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert hide(text) == said


def test_the_errors_of_libraries_are_printed_without_passwords() -> None:
    assert without_password(URL) == "https://mlflow.example:5000/x"
    assert reason(EndpointConnectionError(endpoint_url=f"http://me:{WORD}@127.0.0.1:9/bucket")) == (
        'Could not connect to the endpoint URL: "http://127.0.0.1:9/bucket"'
    )


def test_a_traceback_is_printed_without_passwords() -> None:
    program = "from runtime.common.redaction import hide_in_tracebacks; hide_in_tracebacks(); import os\n"
    program += "try:\n    raise OSError(os.environ['KFP_TOKEN'])\nexcept OSError as error:\n"
    program += f"    raise RuntimeError('cannot reach {URL}') from error"
    done = subprocess.run([sys.executable, "-c", program], env={**SECRETS, "PATH": ""}, capture_output=True, text=True)
    assert done.returncode == 1 and "RuntimeError: cannot reach https://mlflow.example:5000/x" in done.stderr
    # of a program in a file Python also prints the line of source, where a secret has no place
    assert not has_secret(line for line in done.stderr.splitlines() if "raise " not in line)
