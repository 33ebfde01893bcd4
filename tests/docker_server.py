"""A server that speaks those paths of Docker's API by which images are found; it holds images that were never built."""

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from background_server import answering_in_background


@contextlib.contextmanager
def docker_server(images: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The address, as `DOCKER_HOST` has it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            path = re.sub(r"^/v[\d.]+", "", url.path)
            found: Any = {"ApiVersion": "1.41", "Version": "20.10.24"}
            if path == "/images/json":
                wanted = json.loads(parse_qs(url.query)["filters"][0])["label"]
                found = [image for image in images if all(holds(image["Config"]["Labels"], each) for each in wanted)]
            elif path.startswith("/images/"):
                found = next(image for image in images if image["Id"] == path.split("/")[2])
            body = json.dumps(found).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with answering_in_background(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as server:
        yield f"tcp://127.0.0.1:{server.server_port}"


def holds(labels: dict[str, str], wanted: str) -> bool:
    name, equal, value = wanted.partition("=")
    return name in labels and (not equal or labels[name] == value)


def image(name: str, source: str, layers: Sequence[str], created: str = "2026-01-01T00:00:00Z") -> dict[str, Any]:
    """An image as the API shows it, tagged as `make images` does."""
    from pipeline.images import content_tag

    attributes: dict[str, Any] = {
        "Id": f"sha256:{name}-{source}-{'-'.join(layers)}-{created}",
        "Created": created,
        "Config": {
            "Env": ["PATH=/opt/venv/bin", f"GIT_COMMIT={created}"],
            "User": "1000:0",
            "WorkingDir": "/app",
            "Labels": {"org.opencontainers.image.title": f"autoformer-{name}", "autoformer.source": source},
        },
        "RootFS": {"Layers": list(layers)},
    }
    return attributes | {"RepoTags": [f"autoformer-{name}:{content_tag(attributes)}"]}
