"""Register the evaluated subnet in MLflow if it passes the gate."""

from runtime.common.early_stop import report_early_stop

report_early_stop()
