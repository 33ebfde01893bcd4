"""Evaluate the retrained subnet on images that nothing before has seen, and report."""
