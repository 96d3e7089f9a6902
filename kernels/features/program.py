"""A side's program: the part of the model before its lookups, run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from kernels.errors import BundleError

# What ONNX Runtime raises shares no base but Exception.
_ORT_ERRORS: Final = tuple(
    error
    for error in vars(ort_errors).values()
    if isinstance(error, type) and issubclass(error, Exception)
)
_DTYPES: Final = {"tensor(int64)": "int64", "tensor(float)": "float32"}


class ProgramError(Exception):
    """The program failed on these values. Internal to this package: the parser blames a request."""


class Program:
    """``user.onnx`` or ``candidate.onnx``: features in, ids, weights and values out.

    Inputs are features by name, int64 or float32 ``[n, width]``; so are outputs.

    Attributes:
        name: For messages.
        inputs: Name to dtype.
        outputs: Name to dtype.

    Raises:
        BundleError: ONNX Runtime does not take the model, or its types are others.
    """

    def __init__(self, name: str, model: bytes) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = (
            4  # a request's fault is its client's to hear of, not the log's
        )
        self.name = name
        try:
            self._session = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
        except _ORT_ERRORS as error:
            raise BundleError(f"{name}: {error}") from error
        self.inputs = {each.name: self._dtype(each) for each in self._session.get_inputs()}
        self.outputs = {each.name: self._dtype(each) for each in self._session.get_outputs()}

    def _dtype(self, value: Any) -> str:  # noqa: ANN401 - onnxruntime.NodeArg
        if value.type not in _DTYPES:
            raise BundleError(f"{self.name}: {value.name!r} is {value.type}: want int64 or float")
        return _DTYPES[value.type]

    def run(self, inputs: Mapping[str, NDArray[Any]], n: int) -> dict[str, NDArray[Any]]:
        """Run over ``n`` rows; ``inputs`` are C-ordered ``[n, width]``.

        Returns:
            Every output, ``[n, width]``.

        Raises:
            ProgramError: The runtime refused, or an output has not ``n`` rows.
        """
        try:
            values = self._session.run(None, dict(inputs))
        except _ORT_ERRORS as error:
            raise ProgramError(str(error)) from error
        outputs = {}
        for name, value in zip(self.outputs, values, strict=True):
            if value.ndim == 1 and len(value) == n:
                value = value[:, None]
            if value.ndim != 2 or len(value) != n:
                raise ProgramError(f"{name!r} has shape {list(value.shape)}: want [{n}, width]")
            outputs[name] = value
        return outputs
