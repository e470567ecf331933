"""The bundled model `four-tasks`: its training, its transcoders, its figures and its model card."""
