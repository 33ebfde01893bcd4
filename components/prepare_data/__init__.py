"""Step 1: index the delivered images, split them, describe them."""
