"""The engines behind :func:`pydiffeqflux.solve`; they share one contract and never import each other."""
