"""Configuration, console, exit codes, processes, work folders and locks. Independent of the services."""
