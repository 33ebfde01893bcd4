"""The step `register_model`."""

from runtime.common.early_stop import report_early_stop

report_early_stop()
