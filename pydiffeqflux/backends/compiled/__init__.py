"""The compiled engine: the model's traced graph, and the loops around it, as machine code for the CPU.

The loops are compiled once for each dtype and kept on disk; a new model costs the compilation of its own small
kernels. Loops call kernels by address, so neither knows the other.
"""
