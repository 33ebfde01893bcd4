"""What steps stand on: `common` ground; the services `tracking`, `storage`, `kubernetes`; `steps`, which runs one."""
