"""Where `prune` was first documented: scripts may import it from here. It is `pxp_optimize.optimize.prune` now."""

from .study.apply import prune

__all__ = ["prune"]
