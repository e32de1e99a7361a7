"""The compiled engine: traced right-hand sides and solver loops as machine code, by numba."""
