"""CoMem for JAX: an agent's history, summarised in the background by a small second model."""

__version__ = "0.1.0"
