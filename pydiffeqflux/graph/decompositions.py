"""Which operators torch itself takes apart, so that the table needs no row for them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch._decomp import decomposition_table

from . import solves, unfused

#: By name; every overload that torch has a decomposition for. Torch's own, so that the formulas are exactly torch's.
NAMES = """
    addcmul addcdiv addr gelu gelu_backward silu silu_backward softplus softplus_backward elu elu_backward
    leaky_relu leaky_relu_backward hardtanh hardtanh_backward hardsigmoid hardsigmoid_backward hardswish
    hardswish_backward mish mish_backward log_sigmoid_forward log_sigmoid_backward celu selu glu glu_backward
    prelu _prelu_kernel _prelu_kernel_backward softshrink softshrink_backward hardshrink hardshrink_backward
    threshold logit logit_backward sinc xlogy _safe_softmax _softmax _softmax_backward_data _log_softmax
    _log_softmax_backward_data logsumexp native_layer_norm native_layer_norm_backward native_group_norm
    native_group_norm_backward _fused_rms_norm _fused_rms_norm_backward native_batch_norm
    native_batch_norm_backward _native_batch_norm_legit _native_batch_norm_legit_no_training std_mean norm
    linalg_vector_norm mse_loss mse_loss_backward smooth_l1_loss embedding_dense_backward diagonal_backward
    nan_to_num unfold_backward trace linspace frac hypot cumprod_backward reflection_pad1d reflection_pad2d
    reflection_pad3d replication_pad1d replication_pad2d replication_pad3d _reshape_copy unsafe_split
    unsafe_chunk chunk tensor_split mean_backward index_add_ lerp dist heaviside deg2rad rad2deg
    special_log_ndtr special_xlog1py grid_sampler_2d upsample_nearest2d upsample_bilinear2d pixel_shuffle
    pixel_unshuffle im2col col2im masked_scatter _euclidean_dist take _unsafe_masked_index
    _unsafe_masked_index_put_accumulate _weight_norm_interface
""".split()


@functools.cache
def decompositions() -> dict[Any, Callable[..., Any]]:
    """The decomposition table for :func:`~pydiffeqflux.graph.record.record`."""
    wanted = {f"aten.{name}" for name in NAMES}
    table = {}
    for op, rule in decomposition_table.items():
        if isinstance(op, torch._ops.OpOverload) and str(op).rsplit(".", 1)[0] in wanted:
            table[op] = rule
    return table | solves.RULES | unfused.RULES
