"""Tasks, the training of the bundled model, and measurements against known answers."""
