"""The layout of a wide layer's weights and bias on the card; the same for every config."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.fp8 import LARGEST, Scales, to_e4m3
from kernels.halves import to_bf16, to_fp16, to_tf32
from kernels.program import Precision
from kernels.wide.layer import WideLayer


def packed_bytes(layer: WideLayer) -> int:
    """Return the size of what ``pack`` makes."""
    return layer.out_scale_offset + (16 if layer.stores_eights else 0)


@attrs.frozen
class Quantised:
    """What values are multiplied by before they are rounded to e4m3.

    Attributes:
        inputs: Of each X_i; empty where they are 16-bit floats.
        output: Of Y, where it is stored so.
        scales: What has a scale of its own, of the weights.
    """

    inputs: tuple[float, ...] = ()
    output: float = 1.0
    scales: Scales = Scales.ROW

    def weights(
        self, layer: WideLayer, weight: NDArray[np.float32]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Quantise ``[groups, k, n]``; return it, and what to multiply sums by ``[groups, n]``.

        The inputs' scales are undone by the weights, as those of segments differ.
        """
        undone = np.repeat(1 / np.array(self.inputs, np.float32), layer.segments)
        plain = weight * undone[None, :, None]
        axes = (1,) if self.scales is Scales.ROW else (0, 1, 2)
        largest = np.abs(plain).max(axes, keepdims=True)
        scale = np.where(largest > 0, largest / np.float32(LARGEST), np.float32(1))
        scale = np.broadcast_to(scale, (layer.groups, 1, layer.n))
        return to_e4m3(plain / scale), np.ascontiguousarray(scale[:, 0], np.float32)


def to_storage(values: NDArray[np.float32], precision: Precision) -> NDArray[Any]:
    """Return weights as they are stored.

    That is the bits of 16-bit floats, fp16 saturated to finite values, bf16 rounded to even; or
    floats, for TF32 rounded.
    """
    match precision:
        case Precision.FP16:
            return to_fp16(values)
        case Precision.BF16:
            return to_bf16(values)
        case Precision.TF32:
            return to_tf32(values)
        case Precision.FP32:
            return values


def pack(
    layer: WideLayer,
    weight: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    precision: Precision,
    quantised: Quantised | None = None,
) -> NDArray[np.uint8]:
    """Return weights and bias as the kernels read them.

    Weights come first: ``[groups, k_tiles, n_padded, k_tile]``, swizzled and permuted as the head
    of ``wide_sm90.cuh`` says, then zeros that a last tile of columns may read into; at
    ``layer.bias_offset`` the bias, float32 ``[groups, bias_columns]``. Where X and W are e4m3,
    what columns of the sums are multiplied by follows, float32 ``[groups, bias_columns]``; where Y
    is stored as e4m3, what it is multiplied by.

    Args:
        layer: The layer.
        weight: ``[k, n]``, or ``[groups, k, n]``; segments one after the other along k.
        bias: ``[n]`` or ``[groups, n]``; None for none.
        precision: Of floats for a layer of them, else FP16 or BF16.
        quantised: Scales, where X and W are e4m3 or Y is stored so.

    Returns:
        uint8 ``[packed_bytes(layer)]``.
    """
    g, n = layer.groups, layer.n
    floats = np.asarray(weight, np.float32).reshape(g, layer.k, n)
    source: NDArray[Any]
    if layer.eights:
        assert quantised is not None
        source, scales = quantised.weights(layer, floats)
    else:
        source = to_storage(floats, precision)
    tiles = np.zeros((g, layer.k_tiles * layer.k_tile, layer.n_padded), source.dtype)
    row = padded_row = 0
    for k in layer.segments:
        tiles[:, padded_row : padded_row + k, :n] = source[:, row : row + k]
        row += k
        padded_row += -(-k // layer.k_tile) * layer.k_tile
    # Axes: group, tile, part, element, 32 columns, t, j, e; to (32 columns, j, t, e) in front.
    part = 16 // layer.element_bytes
    blocks = tiles.reshape(g, layer.k_tiles, 8, part, layer.n_padded // 32, 4, 4, 2)
    rows = blocks.transpose(0, 1, 4, 6, 5, 7, 2, 3).reshape(g, layer.k_tiles, -1, 8, part)
    line = np.arange(layer.n_padded)[:, None]
    swizzled = rows[:, :, line, np.arange(8)[None, :] ^ (line % 8)]
    blob = np.zeros(packed_bytes(layer), np.uint8)
    packed = np.ascontiguousarray(swizzled).reshape(-1).view(np.uint8)
    blob[: packed.size] = packed

    def put(values: NDArray[np.float32], offset: int) -> None:
        columns = np.zeros((g, layer.bias_columns), np.float32)
        columns[:, :n] = values.reshape(g, n)
        blob[offset : offset + columns.nbytes] = columns.reshape(-1).view(np.uint8)

    if bias is not None:
        put(np.asarray(bias, np.float32), layer.bias_offset)
    if layer.eights:
        put(scales, layer.scale_offset)
    if layer.stores_eights:
        assert quantised is not None
        scale = np.array([quantised.output, 0, 0, 0], np.float32)
        blob[layer.out_scale_offset :] = scale.view(np.uint8)
    return blob
