"""Shared by all tests."""

import matplotlib
import torch

# Small tensors: a second thread only adds overhead, and results stay the same on every machine.
torch.set_num_threads(1)
# No test opens a window.
matplotlib.use("Agg")
