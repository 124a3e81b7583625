"""Where `load_pruned` was first documented: scripts may import it from here. It is in `pxp_optimize.optimize`."""

from .study.checkpoint import load_pruned

__all__ = ["load_pruned"]
