"""The frame of a step: its command line, ranks, inputs and training loop, and its job on several machines."""
