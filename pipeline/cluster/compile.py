"""Compile the DAG to a package that a KFP cluster runs, for any cluster or for one of known settings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autoformer.errors import AutoFormerError
from autoformer.files import check_writable, hash_value, replacing
from pipeline.cluster.settings import Cluster, load_cluster
from runtime.common.config import STEPS
from runtime.common.console import Parser, check_apart, report_error
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
        out, manifests = arguments.out, arguments.manifests
        if arguments.overrides and not arguments.cluster:
            raise AutoFormerError("--set overrides values of a cluster; name one with --cluster")
        for file in filter(None, (out, manifests)):
            if file.is_dir():
                raise AutoFormerError(f"{file}: a folder; name the file to write")
            check_writable(file)
        check_apart([out], manifests)
        cluster = load_cluster(arguments.cluster, arguments.overrides) if arguments.cluster else None
        print(f"{out}: the pipeline '{PIPELINE}', its steps on the image {write_package(out, cluster)}")
        if manifests:
            version = write_manifests(manifests, cluster)
            print(f"{manifests}: Pipeline '{PIPELINE}' and PipelineVersion '{version}', for kubectl apply")
        for line in _summary(cluster) if cluster else ():
            print(line)
    except (AutoFormerError, OSError) as error:
        return report_error("compile", error)
    return 0


def write_package(out: Path, cluster: Cluster | None = None, fresh: bool = False) -> str:
    """Write the package for a cluster, or for any cluster; returns the image of its steps.

    `fresh`: disable the cache for all tasks.
    """
    pipeline, image = _build(cluster, fresh)
    _compile(pipeline, out)
    return image


def write_manifests(out: Path, cluster: Cluster | None = None) -> str:
    """Write the Kubernetes objects Pipeline and PipelineVersion; returns the name of the version.

    KFP never changes a version, so its name is a hash of its content.
    """
    from kfp.compiler.compiler_utils import KubernetesManifestOptions

    pipeline, _ = _build(cluster)
    specifications = (pipeline.pipeline_spec, pipeline.platform_spec)
    content = [specification.SerializeToString(deterministic=True).hex() for specification in specifications]
    version = f"{PIPELINE}-{hash_value(content)[:12]}"
    options = KubernetesManifestOptions(
        pipeline_name=PIPELINE,
        pipeline_version_name=version,
        namespace=cluster.namespace if cluster else None,
        include_pipeline_manifest=True,
    )
    _compile(pipeline, out, kubernetes_manifest_options=options, kubernetes_manifest_format=True)
    return version


def _build(cluster: Cluster | None, fresh: bool = False) -> tuple[Any, str]:
    """The pipeline and the image of its steps."""
    from pipeline.cluster.placement import configure_task, pipeline_config
    from pipeline.dag import build
    from runtime.steps.kfp_edge import IMAGE

    def configure(step: str, task: Any) -> None:
        if cluster:
            configure_task(cluster, step, task)
        if fresh:
            task.set_caching_options(False)

    if cluster is None:
        return build(configure, IMAGE), IMAGE
    return build(configure, cluster.images.training, pipeline_config(cluster)), cluster.images.training


def _compile(pipeline: Any, out: Path, **options: Any) -> None:
    from kfp import compiler

    with replacing(out) as temporary:
        package = temporary.with_suffix(".yaml")  # the compiler chooses the format by the suffix
        try:
            compiler.Compiler().compile(pipeline, str(package), **options)
            package.rename(temporary)
        finally:
            package.unlink(missing_ok=True)


def _summary(cluster: Cluster) -> list[str]:
    """The machines of each step, and the settings that still have example values."""
    lines = [f"  light pods, as those of resolve_config and of launched jobs, on the image {cluster.images.launcher}"]
    for name in STEPS:
        step = cluster.step(name)
        machines = f"{step.nodes} machines, each " if step.nodes > 1 else ""
        gpus = f"{step.gpus} x {step.gpu_type}, " if step.gpus else ""
        lines.append(f"  {name}: {machines}{gpus}{step.cpu} {'core' if step.cpu == '1' else 'cores'}, {step.memory}")
    examples = cluster.placeholders()
    if examples:
        lines.append(f"still the example's, and to be replaced before it is submitted: {', '.join(examples)}")
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
