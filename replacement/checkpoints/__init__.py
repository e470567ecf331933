"""Folders of trained replacement layers: one file a format."""

from replacement.checkpoints.ours import load_transcoders, save_transcoders

__all__ = ["load_transcoders", "save_transcoders"]
