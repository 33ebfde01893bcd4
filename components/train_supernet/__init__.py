"""Train the weight-entangled supernet."""
