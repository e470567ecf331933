"""The second bundled model: the four tasks and sequence continuation in one vocabulary."""
