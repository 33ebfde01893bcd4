"""Manifests against the schemas of Kubeflow Trainer's resources, and against Kubernetes' own; no cluster asked."""

import importlib
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

TRAINER = ("TrainJob", "TrainingRuntime")
KUBERNETES = "1.33"


def problems(manifest: dict[str, Any]) -> list[str]:
    """What the API server would refuse a manifest for: values of another type, and fields that there are not."""
    if manifest["kind"] in TRAINER:
        return _by_model(manifest)
    if manifest["apiVersion"].startswith("kustomize."):
        return []
    try:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [str(error)]
    return []


def _by_model(manifest: dict[str, Any]) -> list[str]:
    kind = manifest["kind"]
    words = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in kind)
    module = importlib.import_module(f"kubeflow_trainer_api.models.trainer_v1alpha1{words}")
    try:
        read = getattr(module, f"TrainerV1alpha1{kind}").from_dict(manifest).to_dict()
    except ValueError as error:
        return [str(error)]
    return list(_lost(manifest, read, kind))


def _lost(given: Any, read: Any, where: str) -> Any:
    """The model passes over fields that it does not know: whatever does not come back is one."""
    if isinstance(given, dict) and isinstance(read, dict):
        for name, value in given.items():
            if name not in read:
                yield f"{where}.{name}: no such field"
            else:
                yield from _lost(value, read[name], f"{where}.{name}")
    elif isinstance(given, list) and isinstance(read, list):
        for number, (one, other) in enumerate(zip(given, read, strict=True)):
            yield from _lost(one, other, f"{where}[{number}]")


def manifests(folder: Path) -> list[dict[str, Any]]:
    """All manifests of a folder."""
    return [found for file in sorted(folder.glob("*.yaml")) for found in yaml.safe_load_all(file.read_text())]
