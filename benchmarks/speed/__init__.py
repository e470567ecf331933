"""What a run and a trace cost, in forward passes of the same model in the same process."""
