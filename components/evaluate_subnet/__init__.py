"""Evaluate the retrained subnet on the test split, and write the report."""

from runtime.common.early_stop import report_early_stop

report_early_stop()
