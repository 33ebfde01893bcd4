"""Search the supernet for the best subnet under limits."""
