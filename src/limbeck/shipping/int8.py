"""Int8 for ONNX files: weights always; activations by ranges from real samples where there are convolutions, else on the fly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.actors import Student
from limbeck.shipping.graph import quietly
from limbeck.shipping.package import CALIBRATION, Rows, inputs


def quantise(path: Path, student: Student, rows: Rows) -> str:
    """Replace the file by its int8 form, and say how it was made.

    With a convolution in the graph: static, quantise-dequantise pairs, one scale per output channel of a weight, ranges
    of activations from up to 128 training samples (dynamic int8 convolutions are slow and not everywhere implemented).
    Otherwise dynamic: weights int8, activations by the range of each batch.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quant_pre_process,
        quantize_dynamic,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        """Calibration batches, one after another."""

        def __init__(self, feeds: Iterator[dict[str, np.ndarray]]):
            self.feeds = feeds

        def get_next(self) -> Any:
            return next(self.feeds, None)

    prepared, made = path.with_suffix(".prepared.onnx"), path.with_suffix(".int8.onnx")
    graph = onnx.load(path).graph
    convolves = any(node.op_type in ("Conv", "ConvTranspose") for node in graph.node)
    taken = {entry.name for entry in graph.input}
    with quietly():
        quant_pre_process(path, prepared, skip_symbolic_shape=True)
        if convolves:
            quantize_static(
                prepared,
                made,
                Reader(_feeds(student, rows, taken)),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        else:
            quantize_dynamic(prepared, made, weight_type=QuantType.QInt8)
    prepared.unlink()
    made.replace(path)
    return "static, calibrated on training samples" if convolves else "dynamic"


def _feeds(student: Student, rows: Rows, taken: set[str]) -> Iterator[dict[str, np.ndarray]]:
    split = "train" if "train" in rows.data.splits else rows.split
    for batch in rows.batches(split, 32, CALIBRATION):
        columns = inputs(student, batch)
        yield {name: value.numpy() for name, value in columns.items() if name in taken}
