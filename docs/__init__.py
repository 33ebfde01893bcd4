"""The documents, and how they are made and checked."""
