"""The steps of the pipeline, one folder each, and their shared edges: config, command line, tracking."""
