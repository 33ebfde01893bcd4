"""Shared code of the steps: `common`; the services `tracking`, `storage`, `kubernetes`; `steps`, which runs a step."""
