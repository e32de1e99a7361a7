"""The Julia backend: problems handed to DiffEqFlux.jl and the SciML stack, without Python inside the loop."""
