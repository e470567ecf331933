"""What pytest does not look into."""

collect_ignore = ["make.py"]  # needs circuit-tracer
