"""Compile the DAG to a package that a KFP cluster runs, for any cluster or for one of known settings."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from autoformer.errors import AutoFormerError
from autoformer.files import hash_value, replacing
from pipeline.cluster.settings import Cluster, Step, load_cluster
from runtime.common.config import STEPS
from runtime.common.console import Parser, report_error
from runtime.common.overrides import add_option

OUT = Path("dist/autoformer.yaml")
PIPELINE = "autoformer"


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m pipeline.cluster.compile", description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT, help="the package to write (default: %(default)s)")
    parser.add_argument("--cluster", help="a file of configs/cluster/ by name, or the path of one")
    add_option(parser, "KEY=VALUE", "override one of its values")
    parser.add_argument(
        "--manifests", type=Path, help="write Pipeline and PipelineVersion, Kubernetes objects, as well"
    )
    try:
        arguments = parser.parse_args(argv)
        out: Path = arguments.out
        if arguments.overrides and not arguments.cluster:
            raise AutoFormerError("--set overrides values of a cluster; name one with --cluster")
        for file in filter(None, (out, arguments.manifests)):
            if file.is_dir():
                raise AutoFormerError(f"{file}: a folder; name the file to write")
        cluster = load_cluster(arguments.cluster, arguments.overrides) if arguments.cluster else None
        print(f"{out}: the pipeline '{PIPELINE}', its steps on the image {write_package(out, cluster)}")
        if arguments.manifests:
            version = write_manifests(arguments.manifests, cluster)
            print(f"{arguments.manifests}: Pipeline '{PIPELINE}' and PipelineVersion '{version}', for kubectl apply")
        for line in told(cluster) if cluster else ():
            print(line)
    except (AutoFormerError, OSError) as error:
        return report_error("compile", error)
    return 0


def write_package(out: Path, cluster: Cluster | None = None, fresh: bool = False) -> str:
    """Write the package: what KFP runs and, for a known cluster, on what. Returns the image that its steps run on.

    `fresh`: no task of it is taken from the cache.
    """
    from kfp import compiler

    pipeline, image = _built(cluster, fresh)
    _write(out, lambda file: compiler.Compiler().compile(pipeline, file))
    return image


def write_manifests(out: Path, cluster: Cluster | None = None) -> str:
    """Write the Kubernetes objects Pipeline and PipelineVersion; returns the name of the version.

    KFP changes no version that is there, so its name is by its content: the same pipeline is applied twice as one.
    """
    from kfp import compiler
    from kfp.compiler.compiler_utils import KubernetesManifestOptions

    pipeline, _ = _built(cluster)
    specifications = (pipeline.pipeline_spec, pipeline.platform_spec)
    content = [specification.SerializeToString(deterministic=True).hex() for specification in specifications]
    version = f"{PIPELINE}-{hash_value(content)[:12]}"
    options = KubernetesManifestOptions(
        pipeline_name=PIPELINE,
        pipeline_version_name=version,
        namespace=cluster.namespace if cluster else None,
        include_pipeline_manifest=True,
    )
    _write(
        out,
        lambda file: compiler.Compiler().compile(
            pipeline, file, kubernetes_manifest_options=options, kubernetes_manifest_format=True
        ),
    )
    return version


def _built(cluster: Cluster | None, fresh: bool = False) -> tuple[Any, str]:
    """The pipeline for a cluster, or for any; and the image of its steps."""
    from pipeline.dag import build
    from runtime.steps.kfp_edge import IMAGE

    def uncached(step: str, task: Any) -> None:
        if fresh:
            task.set_caching_options(False)

    if cluster is None:
        return build(uncached, IMAGE), IMAGE
    from pipeline.cluster.placement import configure, pipeline_config

    place = configure(cluster)

    def configured(step: str, task: Any) -> None:
        place(step, task)
        uncached(step, task)

    image = cluster.images.training
    return build(configured, image, pipeline_config(cluster)), image


def told(cluster: Cluster) -> list[str]:
    """What a person may want to see before it is submitted."""
    steps: dict[str, Step] = {name: getattr(cluster.steps, name) for name in STEPS}
    lines = [f"  light pods, as those of resolve_config and of launched jobs, on the image {cluster.images.launcher}"]
    lines += [
        f"  {name}: {f'{step.nodes} machines, each ' if step.nodes > 1 else ''}"
        f"{f'{step.gpus} x {step.gpu_type}, ' if step.gpus else ''}{step.cpu} cores, {step.memory}"
        for name, step in steps.items()
    ]
    examples = cluster.placeholders()
    if examples:
        lines.append(f"still the example's, and to be replaced before it is submitted: {', '.join(examples)}")
    return lines


def _write(out: Path, compile_to: Callable[[str], None]) -> None:
    with replacing(out) as temporary:
        package = temporary.with_suffix(".yaml")  # the compiler goes by the ending
        try:
            compile_to(str(package))
            package.rename(temporary)
        finally:
            package.unlink(missing_ok=True)


if __name__ == "__main__":
    raise SystemExit(main())
