"""A task's part of KFP's platform specification: image, machine, identity, secrets and volumes.

The DAG decides what a step does, a cluster's settings where it runs. A step on several machines has a light pod, which
launches a TrainJob with the settings in `AUTOFORMER_JOB`.
"""

from kfp import dsl, kubernetes

from pipeline.cluster.settings import POD, Cluster, Pod, Step
from runtime.common.config import STEPS
from runtime.kubernetes.settings import VARIABLE

# Argo counts this from the start of the first attempt; afterwards it starts and continues no attempt. It must cover all
# attempts and the time that they wait for machines; left out, KFP fills in an hour or none.
RETRY_WINDOW = f"{10**8}s"


def configure_task(cluster: Cluster, step: str, task: dsl.PipelineTask) -> None:
    """Set image, machine and volumes of a task; for `pipeline.dag.build`."""
    settings = cluster.step(step) if step in STEPS else None  # resolve_config has none
    job = cluster.job(step) if settings else None
    pod = settings if settings and not job else cluster.launcher
    task.set_container_image(cluster.images.launcher if pod is cluster.launcher else cluster.images.training)
    for name, value in cluster.environment.items():
        task.set_env_variable(name, value)
    if job:
        task.set_env_variable(VARIABLE, job.to_json())
    elif pod.deadline_seconds:
        kubernetes.set_timeout(task, pod.deadline_seconds)  # a job has its own limit, and may wait for machines
    retries = (settings or pod).retries
    if retries.count:
        task.set_retry(
            retries.count,
            backoff_duration=f"{retries.backoff_seconds}s",
            backoff_factor=retries.backoff_factor,
            backoff_max_duration=RETRY_WINDOW,
        )
    _set_resources(task, pod)
    _set_identity(task, step, cluster)
    kubernetes.empty_dir_mount(task, "scratch", cluster.scratch.mount, size_limit=cluster.scratch.size)
    kubernetes.empty_dir_mount(task, "temporary", "/tmp", size_limit=cluster.scratch.size)
    for volume in cluster.volumes:
        kubernetes.mount_pvc(task, volume.claim, volume.mount)


def pipeline_config(cluster: Cluster) -> dsl.PipelineConfig:
    """The settings of a whole run."""
    keep = cluster.keep_seconds  # sets all three: KFP's manifests set the latter two, which override the first
    return dsl.PipelineConfig(
        active_deadline_seconds=cluster.deadline_seconds,
        ttl_seconds_after_finished=keep,
        ttl_seconds_after_success=keep,
        ttl_seconds_after_failure=keep,
    )


def _set_resources(task: dsl.PipelineTask, pod: Pod) -> None:
    task.set_cpu_request(pod.cpu).set_memory_request(pod.memory).set_memory_limit(pod.memory)
    for key, value in sorted(pod.node_selector.items()):
        kubernetes.add_node_selector(task, key, value)
    for toleration in pod.tolerations:
        kubernetes.add_toleration(task, **toleration.model_dump())
    if isinstance(pod, Step) and pod.gpus:
        task.set_accelerator_type(pod.gpu_type).set_accelerator_limit(pod.gpus)
    if isinstance(pod, Step) and pod.shm:  # the loader's workers need more than the default of 64 MB
        kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=pod.shm)


def _set_identity(task: dsl.PipelineTask, step: str, cluster: Cluster) -> None:
    """Labels, the pod's own name and ids, secrets, user and pull secrets."""
    ours = {"app.kubernetes.io/name": "autoformer", "app.kubernetes.io/component": step}
    for key, label in (cluster.labels | ours).items():
        kubernetes.add_pod_label(task, key, label)
    for variable, field in POD.items():
        kubernetes.use_field_path_as_env(task, variable, field)
    for secret in cluster.secrets:
        kubernetes.use_secret_as_env(task, secret.secret, dict(secret.keys), optional=secret.optional)
    kubernetes.set_security_context(
        task, run_as_user=cluster.run_as_user, run_as_group=cluster.run_as_group, run_as_non_root=True
    )
    kubernetes.set_image_pull_policy(task, cluster.images.pull_policy)
    if cluster.images.pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(cluster.images.pull_secrets))
