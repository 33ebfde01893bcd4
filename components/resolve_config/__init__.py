"""Resolve the parameters of a pipeline run to one frozen configuration, and give each step its own part.

So that what decides a step's result, and nothing else, is in that step's cache key.
"""
