"""Check the documents against the repository: `python -m docs.check`, or `make docs-check`.

Links and anchors lead somewhere; commands, keys, variables and named files exist; quoted messages are in the source;
Python examples compile. Needs no torch, and takes seconds.
"""

import ast
import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from autoformer.errors import quantity
from docs import configuration
from docs.configuration import CLUSTERS, ENVIRONMENT, ON_A_CLUSTER
from runtime.common.config import ROOT, STEPS

PAGES = (ROOT / "README.md", ROOT / "THIRD_PARTY_NOTICES.md", *sorted((ROOT / "docs").glob("*.md")))
SOURCES = ("autoformer", "runtime", "components", "commands", "pipeline")
QUOTES = "text"  # a fenced block of this kind quotes messages, with … where a message has a value
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"(`+)(.+?)\1", re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(\s*([^)\s]+)\s*\)")
_HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)


Problem = str  # file:line: message


class Page(NamedTuple):
    """The parts of a Markdown file. Positions count characters from the start of the file."""

    path: Path
    text: str
    fences: list[tuple[int, str, str]]  # position, language, content
    spans: list[tuple[int, str]]  # position, code in backticks

    def problem(self, position: int, message: str) -> Problem:
        name = self.path.relative_to(ROOT) if self.path.is_relative_to(ROOT) else self.path
        return f"{name}:{self.text.count(chr(10), 0, position) + 1}: {message}"

    @property
    def code(self) -> Iterator[tuple[int, str]]:
        """All spans of code and all lines of fenced blocks, with their positions."""
        yield from self.spans
        for position, _, content in self.fences:
            for line in re.finditer(r".+", content):
                yield position + line.start(), line[0]


def read_page(path: Path) -> Page:
    text = path.read_text(encoding="utf-8")
    fences = [(fence.start(2), fence[1], fence[2]) for fence in _FENCE.finditer(text)]
    spans = [(span.start(2), " ".join(span[2].split())) for span in _CODE.finditer(_without_fences(text))]
    return Page(path, text, fences, spans)


def _without_fences(text: str) -> str:
    """The text with spaces instead of fenced blocks, so that positions stay."""
    return _FENCE.sub(lambda fence: re.sub(r"[^\n]", " ", fence[0]), text)


def problems(paths: Iterable[Path] = PAGES) -> list[Problem]:
    """All problems of these pages, page by page."""
    checks = (links, make_commands, python_commands, keys, files, variables, quotes, examples)
    return [problem for path in paths for check in checks for problem in check(read_page(path))]


def links(page: Page) -> Iterator[Problem]:
    """Relative links and images lead to files, and anchors to headings."""
    for link in _LINK.finditer(_without_fences(page.text)):  # not without spans: a link's text may be code
        target, _, anchor = link[1].partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = page.path.parent / target if target else page.path
        if not file.exists():
            yield page.problem(link.start(), f"leads nowhere: {link[1]}")
        elif anchor and (file.suffix != ".md" or anchor not in anchors(file)):
            yield page.problem(link.start(), f"no such heading: {link[1]}")


@cache
def anchors(path: Path) -> frozenset[str]:
    """The anchors that GitHub gives to the headings of a page."""
    made: list[str] = []
    for heading in _HEADING.findall(_FENCE.sub("", path.read_text(encoding="utf-8"))):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        made.append(f"{slug}-{made.count(slug)}" if slug in made else slug)
    return frozenset(made)


def make_commands(page: Page) -> Iterator[Problem]:
    """`make x` is a target, the Makefile reads `NAME=`, and lists of targets repeat `make help`."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE))
    read = set(re.findall(r"[(, ]([A-Z_]+)[),]", makefile))
    seen: set[str] = set()
    for position, line in page.code:
        command = re.match(r"(?:[A-Z_]+=\S+ )*make\b((?: [^#]*)?)", line)
        if command is None:
            continue
        listed = re.fullmatch(r"make ([a-z-]+) {2,}([^# ].*)", line)
        if listed:  # a line of `make help`
            seen.add(listed[1])
            if help_texts().get(listed[1]) != listed[2]:
                yield page.problem(position, f"`make help` says otherwise of {listed[1]}")
            continue
        arguments = re.sub(r"'[^']*'|\"[^\"]*\"", "", command[1]).split()
        for argument in arguments:
            name, equals, _ = argument.partition("=")
            if equals and name not in read:
                yield page.problem(position, f"the Makefile reads no {name}: {line}")
            elif not equals and re.fullmatch(r"[a-z][\w-]*", name) and name not in targets:
                yield page.problem(position, f"no such target of make: {name}")
    if "help" in seen:  # a list of all of them
        for name in sorted(help_texts().keys() - seen):
            yield page.problem(0, f"the list of commands lacks {name}")


@cache
def help_texts() -> dict[str, str]:
    """Target -> its text in `make help`."""
    return dict(re.findall(r"^([a-z-]+):.*?## (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def python_commands(page: Page) -> Iterator[Problem]:
    """`python -m x.y` is a module that can be run."""
    for position, line in page.code:
        for module in re.findall(r"python[\d.]* -m ([\w.]+)", line):
            top = module.partition(".")[0]
            if (ROOT / top).is_dir():
                base = ROOT / module.replace(".", "/")
                exists = base.with_suffix(".py").is_file() or (base / "__main__.py").is_file()
            else:
                exists = importlib.util.find_spec(top) is not None
            if not exists and not module.endswith("."):  # `components.<step>` stands for several
                yield page.problem(position, f"cannot be run: python -m {module}")


@cache
def known_keys() -> frozenset[str]:
    """All dotted keys of a parameter file and of a cluster's settings, and their sections."""
    every: set[str] = set()
    for title, rows in configuration.tables().items():
        prefixes = {
            "Shared by all steps": [""], "Search spaces": ["space."], CLUSTERS: [""],
            ON_A_CLUSTER: ["launcher.", *(f"steps.{step}." for step in STEPS)],
        }.get(title, [f"{title}."])  # fmt: skip
        if title == "train_supernet":
            prefixes.append("retrain_subnet.")
        every |= {f"{prefix}{row.key}" for prefix in prefixes for row in rows}
    return frozenset({".".join(key.split(".")[: depth + 1]) for key in every for depth in range(key.count(".") + 1)})


def keys(page: Page) -> Iterator[Problem]:
    """Keys that are set, or named as `section.key`, exist in the configuration."""
    for position, line in page.code:
        named = [key for text in re.findall(r"SET=[\"']([^\"']+)[\"']", line) for key in re.findall(r"([\w.]+)=", text)]
        named += re.findall(r"SET=([a-z][\w.]*)=", line)
        named += re.findall(r"(?:--set|--set-param|-S) ['\"]?([a-z][\w.]*)=", line)
        step = line.partition(".")[0]
        if step in STEPS and re.fullmatch(r"[a-z][\w.]*(\.\*)?", line) and not line.endswith((".py", ".json")):
            named.append(line.removesuffix(".*"))
        for key in named:
            if key not in known_keys() and key != "section.key":
                yield page.problem(position, f"no such key of a parameter file: {key}")


def files(page: Page) -> Iterator[Problem]:
    """Paths of the repository in backticks exist, outside the folders that runs make."""
    folders = {entry.name for entry in ROOT.iterdir() if entry.is_dir()} - made_by_runs()
    for position, span in page.spans:
        path = re.fullmatch(r"(\.?[\w-]+)/([\w./-]*)", span)
        missing = path is not None and path[1] in folders and not (ROOT / span).exists()
        if missing or (re.fullmatch(r"\w+\.py", span) and not any(ROOT.glob(f"*/**/{span}"))):
            yield page.problem(position, f"no such file: {span}")


def made_by_runs() -> set[str]:
    """The folders that git ignores, and `data`: their content differs between machines."""
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    return {"data", *(line.strip("/") for line in ignored)}


def variables(page: Page) -> Iterator[Problem]:
    """The project's environment variables are on the page of the configuration."""
    for position, line in page.code:
        for name in re.findall(r"\bAUTOFORMER_[A-Z_]+", line):
            if name not in ENVIRONMENT:
                yield page.problem(position, f"no such variable: {name}")


def quotes(page: Page) -> Iterator[Problem]:
    """Quoted messages are in the source word by word."""
    for position, language, content in page.fences:
        if language != QUOTES:
            continue
        for line in re.finditer(r".+", content):
            if not any(line[0].strip() in template for template in messages()):
                yield page.problem(position + line.start(), f"no such message in the source: {line[0].strip()}")


@cache
def messages() -> frozenset[str]:
    """Every text of the source on one line, with … for each value."""
    texts = {(ROOT / "Makefile").read_text(encoding="utf-8").replace("%s", "…")}
    for folder in SOURCES:
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                    texts.add("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.add(node.value)
    return frozenset(" ".join(text.replace("{}", "…").split()) for text in texts)  # "{}" for `str.format`


def examples(page: Page) -> Iterator[Problem]:
    """Python blocks compile."""
    for position, language, content in page.fences:
        if language == "python":
            try:
                compile(content, str(page.path), "exec")
            except SyntaxError as error:
                yield page.problem(position, f"not Python: {error.msg} in line {error.lineno} of the block")


def generated() -> Iterator[Problem]:
    """The page of the configuration is up to date with the models, and they describe every key."""
    for key in configuration.undescribed():
        yield f"docs/configuration.md: a key has no meaning, give its Field a description: {key}"
    page = configuration.PAGE
    if not page.exists() or page.read_text(encoding="utf-8") != configuration.page():
        yield "docs/configuration.md: not up to date with the models; run `make docs`"


def main() -> int:
    every = [*generated(), *problems()]
    for problem in every:
        print(problem, file=sys.stderr)
    print(f"{quantity(len(PAGES), 'page')}, {quantity(len(every), 'problem')}")
    return 1 if every else 0


if __name__ == "__main__":
    raise SystemExit(main())
