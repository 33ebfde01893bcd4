"""Run the steps through `dvc repro`, with a preset or overrides written to params.yaml first."""

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from autoformer.errors import AutoFormerError
from autoformer.files import hash_file, write_text
from autoformer.named import CONFIGS
from autoformer.reading import parse_yaml, read_json_as
from commands.check_weights import check_in_another_process
from components.resolve_config.step import resolve
from pipeline.local import patient_threads
from pipeline.step_processes import StepProcesses
from pipeline.summary import summary
from runtime import tracking
from runtime.common.config import ROOT, STEPS, Config, load_config, preset_path
from runtime.common.console import Parser, repeat_failure, run_command
from runtime.common.git import dvc_environment, git
from runtime.common.locks import hold_lock
from runtime.common.overrides import add_option, apply, parse
from runtime.common.records import StepRecord
from runtime.common.stopping import Stopped

PARAMS = ROOT / "params.yaml"
_TRACKED = {"threads": "null", "device": "auto"}  # optional keys in dvc.yaml, which DVC requires in params.yaml
WRITTEN = ROOT / ".dvc" / "tmp" / "params.sha256"  # hash of the params.yaml that this command wrote last


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m pipeline.repro", description=__doc__)
    parser.add_argument("--preset", default="params.yaml", help="a preset to write to params.yaml (default: as it is)")
    add_option(parser)
    steps = StepProcesses()

    def work(arguments: argparse.Namespace) -> int:
        try:
            with hold_lock(ROOT / ".dvc" / "tmp" / "repro", "checkout"):
                if code := check_in_another_process(resolve(arguments.preset, arguments.overrides)):
                    return code
                _write_params(arguments.preset, arguments.overrides)
                tracking.initialise(tracking.tracking_uri())
                return _repro(steps)
        except Stopped:
            steps.stop()
            raise

    return run_command("repro", parser, work, argv, steps.signal)


def _repro(steps: StepProcesses) -> int:
    failure = ROOT / ".dvc" / "tmp" / f"failure-{os.getpid()}.json"
    environment = _environment() | {"AUTOFORMER_FAILURE": str(failure)}
    dvc = subprocess.Popen([sys.executable, "-m", "dvc", "repro"], cwd=ROOT, env=environment)
    try:
        code = dvc.wait()  # on a signal, `subprocess.run` would kill DVC before its stage has ended
        if code:  # DVC's own is always 255
            steps.stop_orphans()
            return repeat_failure("repro", failure)
    finally:
        failure.unlink(missing_ok=True)
    _show()
    return 0


def _environment() -> dict[str, str]:
    environment = os.environ | {
        "AUTOFORMER_RUNNER_PID": str(os.getpid()),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",  # dvc.yaml runs `python`
        "PYTHONUNBUFFERED": "1",
        **patient_threads(),
        **dvc_environment(),
    }
    if not sys.stderr.isatty():
        environment.pop("DVC_IGNORE_ISATTY", None)  # it makes DVC draw progress bars into a log
    return environment


def _write_params(preset: str, overrides: list[str]) -> None:
    """Validate the preset with its overrides, and write it to params.yaml; refuse to overwrite unsaved edits."""
    path = preset_path(preset)
    text = path.read_text(encoding="utf-8")
    if overrides:
        text = checked(text, load_config(preset, overrides), overrides)
    text += "".join(f"{key}: {value}\n" for key, value in _TRACKED.items() if key not in parse_yaml(text, str(path)))
    if text == PARAMS.read_text(encoding="utf-8"):
        return
    if path.resolve() != PARAMS and not _is_saved_elsewhere(PARAMS):
        raise AutoFormerError(
            "params.yaml has edits that are neither committed nor a preset; commit them, or save them as a file "
            f"of configs/presets/, before PRESET={preset} takes their place"
        )
    write_text(PARAMS, text)
    write_text(WRITTEN, hash_file(PARAMS))
    restore = "; `git checkout params.yaml` restores the committed one" if git("rev-parse", "HEAD") else ""
    print(f"repro: params.yaml is now {preset}{' with ' + ' '.join(overrides) if overrides else ''}{restore}")


def _is_saved_elsewhere(params: Path) -> bool:
    presets = (preset.read_bytes() for preset in (CONFIGS / "presets").glob("*.yaml"))
    if params.read_bytes() in presets:
        return True
    if WRITTEN.exists() and WRITTEN.read_text(encoding="utf-8") == hash_file(params):
        return True
    return git("diff", "--quiet", "HEAD", "--", str(params)) is not None


def checked(params: str, wanted: Config, overrides: list[str]) -> str:
    """The YAML text with values replaced, checked to read as the configuration `wanted`.

    If an in-place edit would change other sections too (anchors, merge keys), the whole file is written anew, without
    comments.

    Raises:
        AutoFormerError: neither text reads as `wanted`, or an override sets a single value of a space.
    """
    for text in overrides:
        path = parse(text).path
        if path[0] == "space" and len(path) > 1:
            raise AutoFormerError(f"--set {text}: DVC follows a space by its file; make one in configs/spaces/")
    spelled_out = parse_yaml(params, "the preset")
    apply(spelled_out, overrides)
    from ruamel.yaml.error import YAMLError

    for make in (lambda: overridden(params, overrides), lambda: yaml.dump(spelled_out, Dumper=_Plain, sort_keys=False)):
        with contextlib.suppress(YAMLError, AutoFormerError):
            text = make()
            if load_config(json.dumps(parse_yaml(text, "params.yaml"))) == wanted:
                return text
    raise AutoFormerError(
        f"--set {' '.join(overrides)}: params.yaml cannot hold this as it is written; edit the file by hand"
    )


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


def _quoted(value: Any) -> Any:
    """Quote texts such as `on`: ruamel writes YAML 1.2, but the reader's YAML 1.1 reads a bare `on` as true."""
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString

    if isinstance(value, dict):
        return {key: _quoted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_quoted(item) for item in value]
    if isinstance(value, str) and yaml.safe_dump(value).startswith(("'", '"')):
        return DoubleQuotedScalarString(value)
    return value


def overridden(params: str, overrides: list[str]) -> str:
    """The YAML text with values replaced and its comments preserved."""
    from ruamel.yaml import YAML

    editor = YAML()
    editor.preserve_quotes = True
    data = editor.load(params)
    apply(data, overrides, _quoted)
    out = io.StringIO()
    editor.dump(data, out)
    return out.getvalue()


def _show() -> None:
    artifacts = ROOT / "artifacts"
    files = {step: artifacts / "records" / f"{step}.json" for step in STEPS}
    # not the output of a stage, so DVC does not restore them from its cache
    records = {step: read_json_as(StepRecord, file) for step, file in files.items() if file.exists()}
    outputs = {name: artifacts / name for name in ("search", "retrain", "evaluation")}
    outputs["registration"] = artifacts / "registration.json"
    more = [("report", "artifacts/evaluation/report.html"), ("model card", "artifacts/model_card.md")]
    print(summary(load_config(str(PARAMS)), outputs, records, more))


if __name__ == "__main__":
    raise SystemExit(main())
