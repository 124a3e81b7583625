"""pxp-optimize: a Bayesian hyperparameter optimizer for attribution rules.

`pxp_optimize.optimize` is the front door; `attribution`, `pruning` and `studies` are the rooms behind it.
"""

from __future__ import annotations

from importlib.metadata import version

__version__ = version("pxp-optimize")
