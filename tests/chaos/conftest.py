"""The seed of the suite, and the table at its end."""

import os
import random
from collections.abc import Callable

import pytest

ROWS = pytest.StashKey[list[str]]()
SEED = int(os.environ.get("SEED") or random.SystemRandom().randrange(10**6))
Row = Callable[[str, str, int], None]


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Drawn from `SEED` and the test's name, so that one test alone repeats."""
    return random.Random(f"{SEED} {request.node.name}")


@pytest.fixture
def row(pytestconfig: pytest.Config) -> Row:
    """Add a row to the table: the part, the fault, the number of times."""

    def add(part: str, fault: str, times: int) -> None:
        pytestconfig.stash.setdefault(ROWS, []).append(f"| {part} | {fault} | {times} |")

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if ROWS not in config.stash:  # `make test` reads this file, too
        return
    terminalreporter.section(f"survived, SEED={SEED}")
    for line in ("| Part | Fault | Times |", "|---|---|---|", *config.stash.get(ROWS, [])):
        terminalreporter.line(line)
