"""The sweep, flow edges, and what they cost."""
