"""Train the weight-entangled supernet."""

from runtime.common.early_stop import report_early_stop

report_early_stop()
