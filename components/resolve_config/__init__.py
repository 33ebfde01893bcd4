"""Resolve the parameters of a pipeline run to one frozen configuration, and divide it into a part for each step.

So a step's cache key contains only what decides its result.
"""
