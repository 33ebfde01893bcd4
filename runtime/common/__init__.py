"""Configuration, console, exit codes, processes, work folders and locks. Knows no service."""
