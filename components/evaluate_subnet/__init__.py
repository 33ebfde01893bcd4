"""The step that evaluates the retrained subnet on the test split, and reports."""

from runtime.common.early_stop import report_early_stop

report_early_stop()
