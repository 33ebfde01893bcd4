"""The seed of the suite, its workers, and the table at its end."""

import os
import random
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling
    from xdist.workermanage import WorkerController

SEED = os.environ.get("SEED") or str(random.SystemRandom().randrange(10**6))
os.environ["SEED"] = SEED  # for the other workers
ALONE = ("suite", "memory")  # each of their tests on the next free worker; other files whole on one


def pytest_configure() -> None:
    stride = os.environ.get("STRIDE") or "1"
    if not stride.isdecimal() or int(stride) == 0:
        raise pytest.UsageError(f"STRIDE={stride}: expected a number above 0")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> "LoadScopeScheduling":
    """The outages wait for most of their time, one after the other on one worker; the kills keep the others busy."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFileOrTest(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return nodeid if file.endswith(tuple(f"{name}.py" for name in ALONE)) else file

        def remove_node(self, node: "WorkerController") -> str | None:
            """Of a worker that has died: without the test that it was in, which xdist 3.8 would repeat without end."""
            mine = self.assigned_work[node]
            left = [(scope, test) for scope, tests in mine.items() for test, done in tests.items() if not done]
            if left:
                mine[left[0][0]][left[0][1]] = True
            for scope in [scope for scope, tests in mine.items() if all(tests.values())]:
                del mine[scope]
            super().remove_node(node)
            return left[0][1] if left else None

    config.option.loadscopereorder = False
    return ByFileOrTest(config, log)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Drawn from `SEED` and the test's name, so that one test alone repeats."""
    return random.Random(f"{SEED} {request.node.name}")


@pytest.fixture
def row(record_property: Callable[[str, object], None]) -> Callable[[str, str, int], None]:
    """Add a row to the table: the part, the fault, the number of times."""
    return lambda part, fault, times: record_property("row", f"| {part} | {fault} | {times} |")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What held, and what did not: also after a failure or a worker's death."""
    passed, failed, errors, skipped = (
        {each.nodeid: each for each in terminalreporter.stats.get(outcome, [])}
        for outcome in ("passed", "failed", "error", "skipped")
    )
    failed |= errors
    if not any("chaos/" in name for name in passed | failed | skipped):
        return  # `make test` reads this file, too
    held = [each for name, each in passed.items() if name not in failed]
    rows = sorted(str(value) for each in held for key, value in each.user_properties if key == "row")
    without = Counter(each.nodeid.partition("::")[0] for each in held if "row" not in dict(each.user_properties))
    rows += [f"| {file} | each of its tests | {times} |" for file, times in without.items()]
    rows += [f"| {name} | NOT TESTED | 0 |" for name in skipped] + [f"| {name} | FAILED | 0 |" for name in failed]
    terminalreporter.section(f"{len(failed)} tests failed, SEED={SEED}" if failed else f"survived, SEED={SEED}")
    for line in ("| Part | Fault | Times |", "|---|---|---|", *rows):
        terminalreporter.line(line)
