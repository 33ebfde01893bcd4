"""Everything around a step: command line, ranks, inputs, training loop, and jobs on several machines."""
