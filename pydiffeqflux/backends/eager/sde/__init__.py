"""Stochastic equations on the native engine: the equation, its Brownian path, the schemes, the adjoints."""
