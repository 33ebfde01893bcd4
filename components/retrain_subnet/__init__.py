"""Retrain the chosen subnet."""
