"""Resolve the parameters of a pipeline run to one frozen configuration, and give each step its own part.

A step's cache key then holds what decides its result, and nothing else.
"""
