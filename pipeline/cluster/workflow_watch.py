"""Where a run's workflow is in Kubernetes: in which namespace, and whether it was deleted there."""

import logging
import time
from typing import TYPE_CHECKING

from autoformer.errors import AutoFormerError
from pipeline.cluster.kfp_access import MissingError
from pipeline.cluster.workflow import Workflow
from runtime.common.console import print_line
from runtime.common.exit_codes import JobFailed
from runtime.kubernetes.api import PATIENCE, KubernetesApi, RefusedError

if TYPE_CHECKING:
    from pipeline.cluster.kfp_client import KfpClient

QUIET_SECONDS = 120.0  # without news of a run, after which Kubernetes is asked for its workflow
MISSES = 2  # looks without the workflow, one after the other, before it counts as deleted
RUN_LABEL = "pipeline/runid"
_BRIEF = PATIENCE._replace(outage_seconds=0.0)


class WorkflowWatch:
    """The workflow of a followed run, in the cluster of this pod, of `KUBECONFIG` or of ~/.kube/config.

    KFP reports a run whose workflow was deleted as running for ever. The cluster may be another one than KFP's: it
    counts as KFP's own once it has had the workflow, or if it has another one whose run KFP knows. After a first error
    it is not asked again.
    """

    def __init__(self, client: "KfpClient") -> None:
        self._client, self._news_at, self._is_first = client, time.monotonic(), True
        self._is_reachable, self._is_own, self._misses = True, False, 0

    def look(self, workflow: Workflow | None, is_news: bool) -> None:
        """Note the namespace once; without news for a while, check that the workflow still exists.

        Raises:
            MissingError: KFP's own cluster has the workflow no longer.
        """
        if is_news:
            self._news_at = time.monotonic()
        if workflow is None:
            return
        if self._is_first:
            self._is_first = False
            self._note_namespace(workflow)
        if self._is_reachable and time.monotonic() - self._news_at > QUIET_SECONDS and self._is_deleted(workflow):
            where = f"'{workflow.name}' in the namespace '{workflow.namespace}'"
            raise MissingError(
                f"Kubernetes has no workflow {where} any more: it was deleted, and KFP reports its run as running for "
                "ever; start another run, which takes what was done from the cache"
            )

    def _note_namespace(self, workflow: Workflow) -> None:
        """A server of one team runs everything in its own namespace, whatever the settings name."""
        wanted, actual = self._client.wanted_namespace, workflow.namespace
        if not self._client.namespace and wanted and actual and wanted != actual:
            print_line(f"the run is in the namespace '{actual}', the only one of this server, not in '{wanted}'")

    def _is_deleted(self, workflow: Workflow) -> bool:
        disabled = logging.root.manager.disable
        logging.disable()  # lines of Kubernetes's client about a login that fails
        try:
            api = KubernetesApi.connect(_BRIEF, workflow.namespace or self._client.pod_namespace)
            if api.has_workflow(workflow.name):
                self._is_own, self._misses = True, 0
                return False
            self._is_own = self._is_own or any(map(self._is_known, api.labels_of_workflows(RUN_LABEL)))
        except (AutoFormerError, JobFailed, RefusedError, OSError):
            self._is_reachable = False
            return False
        finally:
            logging.disable(disabled)
        self._misses += self._is_own
        return self._misses >= MISSES

    def _is_known(self, run_id: str) -> bool:
        """Whether KFP has a run of that id."""
        try:
            return bool(self._client.get_run(run_id))
        except AutoFormerError:
            return False
