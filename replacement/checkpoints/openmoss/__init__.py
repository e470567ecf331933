"""Lorsa as OpenMOSS publishes it (Language-Model-SAEs): reading and writing single layers."""

from replacement.checkpoints.openmoss.loading import load_openmoss_lorsa
from replacement.checkpoints.openmoss.saving import save_openmoss_lorsa

__all__ = ["load_openmoss_lorsa", "save_openmoss_lorsa"]
