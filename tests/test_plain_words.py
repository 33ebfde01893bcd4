"""Messages and comments of YAML use the field's verbs: a command is run, a run resumes or continues."""

import re

from test_architecture import ROOT

DIALECT = re.compile(
    r"give the same command|same command goes on|goes on (with|from)|asks nobody|of it is above|begins anew"
)
TEXTS = [
    path
    for pattern in ("*.yaml", "docs/*.md", "README.md", "Makefile", *(
        f"{folder}/**/*.{suffix}"
        for folder in ("autoformer", "runtime", "components", "commands", "pipeline", "configs", "docker")
        for suffix in ("py", "yaml", "j2", "in")
    ))
    for path in sorted(ROOT.glob(pattern))
]  # fmt: skip


def test_no_message_and_no_comment_is_in_dialect() -> None:
    assert len(TEXTS) > 200
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in TEXTS
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if DIALECT.search(line)
    ]
    assert not found
