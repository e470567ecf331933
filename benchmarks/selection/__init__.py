"""Which rule selects the best nodes, at equal node count, in the real model."""
