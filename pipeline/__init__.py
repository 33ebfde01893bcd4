"""The DAG of the steps, its local runner and its compiler."""

from runtime.common.early_stop import report_early_stop

report_early_stop()
