"""Commands besides the pipeline: fetch and deliver data, plan a run, predict, compare, measure published weights."""

from runtime.common.early_stop import report_early_stop

report_early_stop()
