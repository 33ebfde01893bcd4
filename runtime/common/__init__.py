"""Shared ground: configuration, console, exit codes, processes, workspace, locks. Knows no service."""
