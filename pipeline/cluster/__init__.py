"""The pipeline on a cluster: settings, compiled package, and client of the KFP server."""
