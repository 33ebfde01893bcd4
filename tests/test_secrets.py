"""Errors show no secrets. test_pipeline and test_outages check that a whole run writes none."""

import subprocess
import sys

import pytest
from botocore.exceptions import EndpointConnectionError
from planted import SECRETS, WORD, has_secret
from sqlalchemy.engine import make_url

from runtime.common.redaction import hide, without_password
from runtime.tracking.store import reason

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


PASSWORDS = (
    "hunter/2word",
    "hunter'2word",
    "hunter#2word",
    "hunter?2word",
    'hunter"2word',
    "hunter:2word",
    "8080/2word",
)


@pytest.mark.parametrize("password", [*PASSWORDS, "hunter 2word", "8080"])
def test_a_password_of_a_database_is_found_as_sqlalchemy_finds_it(
    password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"postgresql+psycopg2://me:{password}@db.example:5432/mlflow?sslmode=require&sslpassword=hunter2word"
    assert make_url(uri).password == password
    assert without_password(uri) == "postgresql+psycopg2://db.example:5432/mlflow"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert hide(f"cannot open '{uri}', try again") == (
        "cannot open 'postgresql+psycopg2://db.example:5432/mlflow', try again"
    )


@pytest.mark.parametrize("password", [word for word in PASSWORDS if not word[0].isdigit()])
def test_a_password_with_signs_of_an_address_is_hidden_in_any_text(password: str) -> None:
    for scheme in ("http", "https", "mysql+pymysql", "postgresql"):
        assert hide(f"GET {scheme}://me:{password}@host:5000/x: refused") == f"GET {scheme}://host:5000/x: refused"
        assert without_password(f"{scheme}://me:{password}@host:5000/x") == f"{scheme}://host:5000/x"


@pytest.mark.parametrize(
    "key", ["token", "access_token", "password", "X-Amz-Signature", "api_key", "jwt", "sslpassword"]
)
def test_a_token_in_the_query_of_an_address_is_hidden(key: str) -> None:
    uri = f"https://mlflow.example/x?page=1&{key}=hunter2word&a=b"
    assert without_password(uri) == "https://mlflow.example/x"
    assert hide(f"GET '{uri}'") == f"GET 'https://mlflow.example/x?page=1&{key}=***&a=b'"


@pytest.mark.parametrize(
    "text",
    [
        "http://host:9000/bucket/a@b", "('http://a:80','b@c')", "sqlite:////data/a:b@c/x?y.db",
        "s3://bucket/a@b", "see https://mlflow.example:5000/#/experiments/1?sort=orderByKey",
    ],
)  # fmt: skip
def test_an_address_without_a_secret_stays_as_it_is(text: str) -> None:
    assert hide(text) == text


def test_a_traceback_is_printed_without_passwords() -> None:
    program = "from runtime.common.redaction import hide_in_tracebacks; hide_in_tracebacks(); import os\n"
    program += "try:\n    raise OSError(os.environ['KFP_TOKEN'])\nexcept OSError as error:\n"
    program += f"    raise RuntimeError('cannot reach {URL}') from error"
    done = subprocess.run([sys.executable, "-c", program], env={**SECRETS, "PATH": ""}, capture_output=True, text=True)
    assert done.returncode == 1 and "RuntimeError: cannot reach https://mlflow.example:5000/x" in done.stderr
    # of a program in a file Python also prints the line of source, where a secret has no place
    assert not has_secret(line for line in done.stderr.splitlines() if "raise " not in line)
