"""Search the supernet for the best subnet under limits."""

from runtime.common.early_stop import report_early_stop

report_early_stop()
