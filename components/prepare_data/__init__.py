"""Step 1: index the delivered images, split them, describe them."""

from runtime.common.early_stop import report_early_stop

report_early_stop()
