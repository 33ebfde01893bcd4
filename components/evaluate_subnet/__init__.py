"""The step that evaluates the retrained subnet on the test split, and reports."""
