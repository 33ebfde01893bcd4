"""What runs a step: its command line, ranks, inputs, training loop, and the job on several machines."""
