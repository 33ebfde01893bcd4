"""The step `register_model`."""
