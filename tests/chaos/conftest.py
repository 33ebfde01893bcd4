"""The seed of the suite, and the table at its end."""

import os
import random
from collections.abc import Callable

import pytest

SEED = os.environ.get("SEED") or str(random.SystemRandom().randrange(10**6))
os.environ["SEED"] = SEED  # for the other workers


def pytest_configure() -> None:
    stride = os.environ.get("STRIDE") or "1"
    if not stride.isdecimal() or int(stride) == 0:
        raise pytest.UsageError(f"STRIDE={stride}: expected a number above 0")


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Drawn from `SEED` and the test's name, so that one test alone repeats."""
    return random.Random(f"{SEED} {request.node.name}")


@pytest.fixture
def row(record_property: Callable[[str, object], None]) -> Callable[[str, str, int], None]:
    """Add a row to the table: the part, the fault, the number of times."""
    return lambda part, fault, times: record_property("row", f"| {part} | {fault} | {times} |")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [each for some in terminalreporter.stats.values() for each in some if getattr(each, "when", "") == "call"]
    once = {each.nodeid: each for each in reports}.values()
    rows = [value for each in once for key, value in each.user_properties if key == "row"]
    if rows:  # `make test` reads this file, too
        terminalreporter.section(f"survived, SEED={SEED}")
        for line in ("| Part | Fault | Times |", "|---|---|---|", *rows):
            terminalreporter.line(line)
