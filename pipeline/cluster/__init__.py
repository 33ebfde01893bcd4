"""The pipeline on a cluster: its settings, the compiled package, and the KFP server that runs it."""
