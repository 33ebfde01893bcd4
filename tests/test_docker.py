"""The images and their runner, as far as that needs no Docker daemon; `make test-containers` has the rest."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest
from docker_server import docker_server, image

import pipeline.containers
import pipeline.images
import pipeline.local
from pipeline.cluster.settings import load_cluster
from pipeline.containers import environment, mounted_paths
from pipeline.images import CODE, NAMES, RECIPE, connect, content_tag, images_of_checkout, name_images, source_hash
from runtime.common.config import ROOT, STEPS, load_config

DOCKERFILE = ROOT / "docker" / "Dockerfile"
LOCKS = [Path(name).stem for name in RECIPE if name.endswith(".lock")]


def instructions(word: str) -> list[str]:
    """What follows an instruction of the Dockerfile, continued lines joined."""
    text = DOCKERFILE.read_text(encoding="utf-8").replace("\\\n", " ")
    return [line.partition(" ")[2] for line in text.splitlines() if line.startswith(f"{word} ")]


# The Dockerfile


def test_hadolint_has_nothing_to_say() -> None:
    result = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), DOCKERFILE], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (0, "")


def test_the_builder_is_sent_what_is_copied_and_no_more() -> None:
    copied = [name for line in instructions("COPY") if "--from" not in line for name in shlex.split(line)[:-1]]
    assert sorted(copied) == sorted([*CODE, "docker/uv.lock"])
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert patterns[0] == "*", "a list of what is allowed"
    allowed = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    assert sorted(allowed) == sorted([*CODE, "docker/*.lock"])
    locks = [name for name in RECIPE if name.endswith(".lock")]
    assert all(fnmatch(lock, "docker/*.lock") for lock in locks)


def test_the_images_run_as_a_user_by_number_and_end_with_labels() -> None:
    assert instructions("USER") == ["1000:0", "1000:0"]
    stages = DOCKERFILE.read_text(encoding="utf-8").split("\nFROM ")
    for stage in stages[-2:]:
        assert stage.index("RUN ") < stage.index("COPY --from=code") < stage.index("ARG REVISION"), "quick to rebuild"
    assert all(line.startswith("--mount=") for line in instructions("RUN") if "install" in line)
    assert "syntax=" not in DOCKERFILE.read_text(encoding="utf-8"), "a frontend that a registry would have to serve"


# The locks


def pins(name: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Package -> its version and the hashes of its files."""
    found = {}
    for block in re.split(r"\n(?=\S)", (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")):
        match = re.match(r"([a-z0-9._-]+)(?:\[[^]]*\])?==([^ ;]+)", block)
        if match:
            found[match[1]] = match[2], frozenset(re.findall(r"--hash=(\S+)", block))
    return found


@pytest.mark.parametrize("name", LOCKS)
def test_every_pin_of_an_image_is_that_of_the_environment(name: str) -> None:
    ours, theirs = pins("requirements.lock"), pins(f"docker/{name}.lock")
    if name != "uv":  # it installs, and is in no image
        assert {package: ours.get(package) for package in theirs} == theirs
    asked = [line for line in (ROOT / f"docker/{name}.in").read_text().splitlines() if line and line[0] != "#"]
    assert set(asked) <= set(theirs), "`make lock` resolves what the images ask for"
    assert all(hashes for _, hashes in theirs.values())
    assert "://" not in re.sub(r"(?m)^ *#.*", "", (ROOT / f"docker/{name}.lock").read_text())


def test_each_image_has_what_it_is_for() -> None:
    launcher, training = pins("docker/launcher.lock"), pins("docker/training.lock")
    assert launcher.keys() & {"torch", "torchvision", "timm", "mlflow", "dvc"} == set()
    assert training.keys() & {"dvc", "kfp", "kubernetes", "pytest"} == set()
    assert {"torch", "torchvision", "timm", "mlflow", "boto3", "scipy"} <= training.keys()
    assert list(pins("docker/executor.lock")) == ["kfp"]


# Their names


def test_the_tag_says_what_is_in_an_image_not_when_it_was_built() -> None:
    first = content_tag(image("training", "a", ["sha256:1", "sha256:2"]))
    assert re.fullmatch(r"[0-9a-f]{12}", first)
    assert content_tag(image("training", "b", ["sha256:1", "sha256:2"], "2026-02-02T00:00:00Z")) == first
    assert content_tag(image("training", "a", ["sha256:1", "sha256:3"])) != first
    changed = image("training", "a", ["sha256:1", "sha256:2"])
    changed["Config"]["Env"].append("OMP_NUM_THREADS=1")
    assert content_tag(changed) != first


def test_the_hash_of_the_source_is_of_all_that_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*CODE, *RECIPE):
        file = tmp_path / name if (ROOT / name).is_file() else tmp_path / name / "below" / "file.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("as it was")
    monkeypatch.setattr(pipeline.images, "ROOT", tmp_path)
    before = source_hash()
    for left in (tmp_path / "autoformer" / "__pycache__" / "x.pyc", tmp_path / "configs" / ".x.swp", tmp_path / "new"):
        left.parent.mkdir(exist_ok=True)
        left.touch()
    assert source_hash() == before
    for file in [file for file in tmp_path.rglob("*") if file.is_file() and file.read_text()]:
        file.write_text("edited")
        assert source_hash() != before, file
        file.write_text("as it was")


def test_the_newest_image_of_this_source_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = source_hash()
    older, newer = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"
    images = [image(name, ours, ["1"], older) for name in ("launcher", "training")]
    images += [image("training", ours, ["2"], newer), image("training", "other", ["3"], "2026-01-03T00:00:00Z")]
    with docker_server(images) as host:
        monkeypatch.setenv("DOCKER_HOST", host)
        assert list(images_of_checkout(connect()).values()) == [images[0]["RepoTags"][0], images[2]["RepoTags"][0]]


def test_each_step_is_named_its_image() -> None:
    executors = {f"exec-{step.replace('_', '-')}": {"container": {"image": ""}} for step in ("resolve_config", *STEPS)}
    specification = SimpleNamespace(deployment_spec={"executors": executors})
    pipeline.local.name_images(SimpleNamespace(pipeline_spec=specification), {"launcher": "l:1", "training": "t:2"})
    assert executors.pop("exec-resolve-config")["container"]["image"] == "l:1"
    assert {executor["container"]["image"] for executor in executors.values()} == {"t:2"}


# What a container is given


def test_a_step_is_told_what_it_needs_by_name_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bundle.crt").touch()
    given = {
        "AWS_SECRET_ACCESS_KEY": "key", "AUTOFORMER_STORE": "s3://bucket", "MLFLOW_TRACKING_URI": "sqlite:///here.db",
        "AWS_CA_BUNDLE": "bundle.crt", "SSL_CERT_FILE": "gone.crt", "AUTOFORMER_TTY": "/dev/pts/1",
        "AUTOFORMER_IMAGE": "other", "GITHUB_TOKEN": "token", "PYTHONPATH": "/elsewhere", "PATH": "/bin",
        "HOME": str(tmp_path), "AUTOFORMER_WORK": "work", "USER": "someone",
    }  # fmt: skip
    for name in [*pipeline.containers.os.environ]:
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    assert environment() == {
        "AWS_SECRET_ACCESS_KEY": "key", "AUTOFORMER_STORE": "s3://bucket", "USER": "someone",
        "AWS_CA_BUNDLE": f"{tmp_path}/bundle.crt", "AUTOFORMER_WORK": f"{tmp_path}/work",
        "AUTOFORMER_STAGING": f"{tmp_path}/work/staged", "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/here.db",
    }  # fmt: skip


def test_data_is_read_and_only_work_and_the_store_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AUTOFORMER_WORK", str(tmp_path / "work"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}")
    for name in pipeline.containers.NAMED_FILES:
        monkeypatch.delenv(name, raising=False)
    data, archives, preset = tmp_path / "data", tmp_path / "archives", tmp_path / "my.yaml"
    for folder in (data, archives):
        folder.mkdir()
    (data / "source.yaml").write_text(f"location: {archives}\n")
    preset.touch()
    (tmp_path / "teacher.pth").touch()
    (tmp_path / "latency.json").touch()
    teacher = f"train_supernet.distillation={{teacher: deit_tiny_patch16_224, checkpoint: {tmp_path / 'teacher.pth'}}}"
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "candidates.csv").touch()
    named = [f"latency.table={tmp_path / 'latency.json'}", f"warm_start.search={tmp_path / 'search'}"]
    config = load_config("smoke", [teacher, *(f"search_subnet.{one}" for one in named)])
    found = {
        str(place.path.relative_to(tmp_path)): place.writable for place in mounted_paths(config, str(data), str(preset))
    }
    assert found == {
        "data": False, "archives": False, "my.yaml": False, "teacher.pth": False, "latency.json": False,
        "search": False, "work": True, "store": True,
    }  # fmt: skip
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    monkeypatch.setenv("AUTOFORMER_STAGING", str(tmp_path / "scratch"))
    found = {
        str(place.path.relative_to(tmp_path)): place.writable
        for place in mounted_paths(config, "s3://bucket/data", "smoke")
    }
    assert found == {
        "teacher.pth": False, "latency.json": False, "search": False, "work": True, "scratch": True,
    }  # fmt: skip


def test_lines_arrive_whole_however_they_are_cut() -> None:
    told = "eins\nzwölf\n\nohne Ende".encode()
    for size in (1, 2, 3, 7, 100):
        pieces: Iterator[bytes] = (told[start : start + size] for start in range(0, len(told), size))
        assert list(pipeline.containers._lines(pieces)) == ["eins\n", "zwölf\n", "\n", "ohne Ende\n"]


# One line


def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What the runner says, in a checkout in which nothing else is at work."""
    monkeypatch.setattr(pipeline.local, "ROOT", tmp_path)
    assert pipeline.local.main(["--runner", "docker", "--preset", "smoke", "--data", str(tmp_path)]) == 2
    output = capsys.readouterr()
    assert output.out == "" and not list((tmp_path / "runs").glob("autoformer-*"))
    assert output.err.count("\n") == 1 and output.err.startswith("pipeline: ")
    return output.err.removeprefix("pipeline: ").rstrip("\n")


Fixtures = tuple[Path, pytest.MonkeyPatch, pytest.CaptureFixture[str]]


@pytest.fixture
def fixtures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fixtures:
    return tmp_path, monkeypatch, capsys


def test_no_daemon(fixtures: Fixtures) -> None:
    host = f"unix://{fixtures[0]}/docker.sock"
    fixtures[1].setenv("DOCKER_HOST", host)
    told = f"no Docker daemon answers at {host}; start one that this user may use, or name it in DOCKER_HOST"
    assert refused(*fixtures) == told
    assert pipeline.images.main([]) == 2
    assert fixtures[2].readouterr().err == f"images: {told}\n"


def test_no_image(fixtures: Fixtures) -> None:
    with docker_server([image("other", source_hash(), ["1"])]) as host:
        fixtures[1].setenv("DOCKER_HOST", host)
        assert refused(*fixtures) == f"there is no image 'autoformer-launcher' at {host}; `make images` builds it"


def test_an_image_of_other_source(fixtures: Fixtures) -> None:
    old = image("training", "0123456789abcdef", ["1"])
    with docker_server([image("launcher", source_hash(), ["1"]), old]) as host:
        fixtures[1].setenv("DOCKER_HOST", host)
        assert refused(*fixtures) == (
            f"the image '{old['RepoTags'][0]}' was built from other source than this checkout holds; "
            "`make images` builds it again, in seconds where only code has changed"
        )


def test_no_program_to_build_with(fixtures: Fixtures) -> None:
    with docker_server([]) as host:
        fixtures[1].setenv("DOCKER_HOST", host)
        fixtures[1].setenv("PATH", str(fixtures[0]))
        assert pipeline.images.main([]) == 2
    told = "images: there is no `docker` on the PATH, which builds images; install it (Debian: docker.io)\n"
    assert fixtures[2].readouterr().err == told


@pytest.mark.parametrize(("required", "code"), [("", 0), ("1", 1)])
def test_where_no_daemon_can_be_had_that_is_said_aloud(required: str, code: int, tmp_path: Path) -> None:
    """To a user who is not root, as `id` has it; the command is left out."""
    (tmp_path / "id").write_text("#!/bin/sh\necho 1000\n")
    (tmp_path / "id").chmod(0o755)
    command = [ROOT / "tests" / "containers" / "with-docker.sh", "touch", tmp_path / "ran"]
    told = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path), "REQUIRE_DOCKER": required}
    result = subprocess.run(command, env=told, capture_output=True, text=True, check=False)
    assert result.returncode == code
    assert "NOT TESTED: nothing was built or run in containers" in result.stderr and "!!!!!!!!" in result.stderr
    assert not (tmp_path / "ran").exists()
    subprocess.run(command, env=told | {"DOCKER_HOST": "unix:///named"}, check=True)
    assert (tmp_path / "ran").exists(), "a daemon that is named is used as it is"


def test_the_digests_of_pushed_images_come_into_a_clusters_settings_and_nothing_else_changes(tmp_path: Path) -> None:
    settings = tmp_path / "mine.yaml"
    before = (ROOT / "configs/cluster/multi-node.yaml").read_text(encoding="utf-8")
    settings.write_text(before, encoding="utf-8")
    pushed = {name: f"registry.here/{name}@sha256:{digit * 64}" for name, digit in zip(NAMES, "ab", strict=True)}
    name_images(settings, pushed)
    lines = zip(before.splitlines(), settings.read_text(encoding="utf-8").splitlines(), strict=True)
    changed = [new.strip() for old, new in lines if old != new]
    assert sorted(changed) == [f"{name}: {pushed[name]}" for name in sorted(NAMES)]
    assert load_cluster(str(settings)).placeholders() == []
