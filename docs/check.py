"""Check what the documents say against the repository: `python -m docs.check`, or `make docs-check`.

Links and anchors lead somewhere, commands and keys exist, files that are named are there, messages that are quoted are
in the source, examples are Python. Torch-free, and done in seconds.
"""

import ast
import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from docs.configuration import CLUSTERS, ENVIRONMENT, ON_A_CLUSTER, PAGE, page, tables, undescribed
from runtime.common.config import STEPS

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", ROOT / "THIRD_PARTY_NOTICES.md", *sorted((ROOT / "docs").glob("*.md")))
SOURCES = ("autoformer", "runtime", "components", "commands", "pipeline")
QUOTES = "text"  # a fenced block of this kind quotes messages, with … where a message has a value
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"(`+)(.+?)\1", re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(\s*([^)\s]+)\s*\)")
_HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)


class Problem(NamedTuple):
    place: str  # file:line
    what: str

    def __str__(self) -> str:
        return f"{self.place}: {self.what}"


class Page(NamedTuple):
    """A Markdown file, taken apart. Positions count characters from the start of the file."""

    path: Path
    text: str
    fences: list[tuple[int, str, str]]  # position, language, content
    spans: list[tuple[int, str]]  # position, code in backticks
    prose: str  # the text with all code blanked, of the same length

    def place(self, position: int) -> str:
        name = self.path.relative_to(ROOT) if self.path.is_relative_to(ROOT) else self.path
        return f"{name}:{self.text.count(chr(10), 0, position) + 1}"

    @property
    def code(self) -> Iterator[tuple[int, str]]:
        """All code: spans, and the lines of fenced blocks."""
        yield from self.spans
        for position, _, content in self.fences:
            for line in re.finditer(r".+", content):
                yield position + line.start(), line[0]


def read_page(path: Path) -> Page:
    text = path.read_text(encoding="utf-8")
    fences = [(found.start(2), found[1], found[2]) for found in _FENCE.finditer(text)]
    without = _FENCE.sub(lambda found: _blank(found[0]), text)
    spans = [(found.start(2), " ".join(found[2].split())) for found in _CODE.finditer(without)]
    return Page(path, text, fences, spans, _CODE.sub(lambda found: _blank(found[0]), without))


def _blank(text: str) -> str:
    return re.sub(r"[^\n]", " ", text)


def problems(paths: Iterable[Path] = PAGES) -> list[Problem]:
    """Everything that is wrong on these pages, in the order of the pages."""
    checks = (links, make_commands, python_commands, keys, files, variables, quotes, examples)
    return [problem for path in paths for check in checks for problem in check(read_page(path))]


def links(found: Page) -> Iterator[Problem]:
    """Relative links and images lead to files, and anchors to headings."""
    text = _FENCE.sub(lambda fence: _blank(fence[0]), found.text)  # a link's text may be code
    for link in _LINK.finditer(text):
        target, _, anchor = link[1].partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = found.path.parent / target if target else found.path
        if not file.exists():
            yield Problem(found.place(link.start()), f"leads nowhere: {link[1]}")
        elif anchor and (file.suffix != ".md" or anchor not in anchors(file)):
            yield Problem(found.place(link.start()), f"no such heading: {link[1]}")


@cache
def anchors(path: Path) -> frozenset[str]:
    """The anchors that GitHub gives to the headings of a page."""
    made: list[str] = []
    for heading in _HEADING.findall(_FENCE.sub("", path.read_text(encoding="utf-8"))):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        made.append(f"{slug}-{made.count(slug)}" if slug in made else slug)
    return frozenset(made)


def make_commands(found: Page) -> Iterator[Problem]:
    """`make x` has a target, `NAME=` on such a line is read by the Makefile, and lists of targets are `make help`'s."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE))
    read = set(re.findall(r"[(, ]([A-Z_]+)[),]", makefile))
    seen: set[str] = set()
    for position, line in found.code:
        command = re.match(r"(?:[A-Z_]+=\S+ )*make\b((?: [^#]*)?)", line)
        if command is None:
            continue
        listed = re.fullmatch(r"make ([a-z-]+) {2,}([^# ].*)", line)
        if listed:  # as `make help` prints it
            seen.add(listed[1])
            if help_texts().get(listed[1]) != listed[2]:
                yield Problem(found.place(position), f"`make help` says otherwise of {listed[1]}")
            continue
        arguments = re.sub(r"'[^']*'|\"[^\"]*\"", "", command[1]).split()
        for argument in arguments:
            name, equals, _ = argument.partition("=")
            if equals and name not in read:
                yield Problem(found.place(position), f"the Makefile reads no {name}: {line}")
            elif not equals and re.fullmatch(r"[a-z][\w-]*", name) and name not in targets:
                yield Problem(found.place(position), f"no such target of make: {name}")
    if "help" in seen:  # a list of all of them
        for name in sorted(help_texts().keys() - seen):
            yield Problem(found.place(0), f"the list of commands lacks {name}")


@cache
def help_texts() -> dict[str, str]:
    """Target -> what `make help` says of it."""
    return dict(re.findall(r"^([a-z-]+):.*?## (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def python_commands(found: Page) -> Iterator[Problem]:
    """`python -m x.y` can be run."""
    for position, line in found.code:
        for module in re.findall(r"python[\d.]* -m ([\w.]+)", line):
            top = module.partition(".")[0]
            if (ROOT / top).is_dir():
                base = ROOT / module.replace(".", "/")
                there = base.with_suffix(".py").is_file() or (base / "__main__.py").is_file()
            else:
                there = importlib.util.find_spec(top) is not None
            if not there and not module.endswith("."):  # `components.<step>` stands for several
                yield Problem(found.place(position), f"cannot be run: python -m {module}")


@cache
def known_keys() -> frozenset[str]:
    """All dotted keys of a parameter file and of a cluster's, with the sections and parts that they lie in."""
    every: set[str] = set()
    for title, rows in tables().items():
        prefixes = {
            "Shared by all steps": [""], "Search spaces": ["space."], CLUSTERS: [""],
            ON_A_CLUSTER: ["launcher.", *(f"steps.{step}." for step in STEPS)],
        }.get(title, [f"{title}."])  # fmt: skip
        if title == "train_supernet":
            prefixes.append("retrain_subnet.")
        every |= {f"{prefix}{row.key}" for prefix in prefixes for row in rows}
    return frozenset({".".join(key.split(".")[: depth + 1]) for key in every for depth in range(key.count(".") + 1)})


def keys(found: Page) -> Iterator[Problem]:
    """What is set exists in the configuration, and so does what is named as `section.key`."""
    for position, line in found.code:
        named = [key for text in re.findall(r"SET=[\"']([^\"']+)[\"']", line) for key in re.findall(r"([\w.]+)=", text)]
        named += re.findall(r"SET=([a-z][\w.]*)=", line)
        named += re.findall(r"(?:--set|--set-param|-S) ['\"]?([a-z][\w.]*)=", line)
        step = line.partition(".")[0]
        if step in STEPS and re.fullmatch(r"[a-z][\w.]*(\.\*)?", line) and not line.endswith((".py", ".json")):
            named.append(line.removesuffix(".*"))
        for key in named:
            if key not in known_keys() and key != "section.key":
                yield Problem(found.place(position), f"no such key of a parameter file: {key}")


def files(found: Page) -> Iterator[Problem]:
    """Paths in backticks that lie in the repository are there. Folders that runs make are not looked into."""
    folders = {entry.name for entry in ROOT.iterdir() if entry.is_dir()} - made_by_runs()
    for position, span in found.spans:
        path = re.fullmatch(r"(\.?[\w-]+)/([\w./-]*)", span)
        missing = path is not None and path[1] in folders and not (ROOT / span).exists()
        if missing or (re.fullmatch(r"\w+\.py", span) and not any(ROOT.glob(f"*/**/{span}"))):
            yield Problem(found.place(position), f"no such file: {span}")


def made_by_runs() -> set[str]:
    """The folders that git ignores, and the data's: what is in them differs from machine to machine."""
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    return {"data", *(line.strip("/") for line in ignored)}


def variables(found: Page) -> Iterator[Problem]:
    """Variables of the environment that are ours are explained on the page of the configuration."""
    for position, line in found.code:
        for name in re.findall(r"\bAUTOFORMER_[A-Z_]+", line):
            if name not in ENVIRONMENT:
                yield Problem(found.place(position), f"no such variable: {name}")


def quotes(found: Page) -> Iterator[Problem]:
    """Quoted messages are in the source, word by word."""
    for position, language, content in found.fences:
        if language != QUOTES:
            continue
        for line in re.finditer(r".+", content):
            if not any(line[0].strip() in template for template in messages()):
                yield Problem(found.place(position + line.start()), f"no such message in the source: {line[0].strip()}")


@cache
def messages() -> frozenset[str]:
    """Every text in the source, on one line, with … for each value that is filled in."""
    texts = {(ROOT / "Makefile").read_text(encoding="utf-8").replace("%s", "…")}
    for folder in SOURCES:
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                    texts.add("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.add(node.value)
    return frozenset(" ".join(text.replace("{}", "…").split()) for text in texts)  # "{}" is filled in later


def examples(found: Page) -> Iterator[Problem]:
    """Blocks of Python compile."""
    for position, language, content in found.fences:
        if language == "python":
            try:
                compile(content, str(found.path), "exec")
            except SyntaxError as error:
                yield Problem(found.place(position), f"not Python: {error.msg} in line {error.lineno} of the block")


def generated() -> Iterator[Problem]:
    """The page of the configuration is what the models say, and they say all."""
    for key in undescribed():
        yield Problem("docs/configuration.md", f"nothing says what a key means, give its Field a description: {key}")
    if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
        yield Problem("docs/configuration.md", "not what the models say; run `make docs`")


def main() -> int:
    found = [*generated(), *problems()]
    for problem in found:
        print(problem, file=sys.stderr)
    print(f"{len(PAGES)} pages, {len(found)} problems")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
