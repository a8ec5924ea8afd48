"""`.safetensors`: a length, a JSON object that lists the tensors, and their bytes."""

from __future__ import annotations

import io
import json
import math
import struct
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from fastloss._scoring import InputError, limits
from fastloss._scoring.readers.files import (
    DAMAGE,
    Request,
    array_at,
    check_shape,
    label_of,
    reason,
    short,
    size_of,
)
from fastloss._scoring.sources import Source

# The header is a length and a JSON object, and reading it here lets a tensor be read in blocks,
# whatever its dtype; the safetensors package would copy every slice.
_SAFETENSORS_DTYPES = {
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
    "I8": "<i1",
    "I16": "<i2",
    "I32": "<i4",
    "I64": "<i8",
    "U8": "<u1",
    "U16": "<u2",
    "U32": "<u4",
    "U64": "<u8",
    "BOOL": "?",
}


def open_safetensors(path: Path, file: io.BufferedReader, request: Request) -> Source:
    size = size_of(file)
    file.seek(0)
    (header_bytes,) = struct.unpack("<Q", file.read(8))
    if header_bytes > size - 8:
        raise InputError(f"{path} is no .safetensors: its header would end behind the file")
    if header_bytes > limits.MOST_HEADER_BYTES:
        raise InputError(
            f"{path} has a header of {header_bytes} bytes, expected at most "
            f"{limits.MOST_HEADER_BYTES}"
        )
    try:
        header = json.loads(file.read(header_bytes))
        tensors = {name: header[name] for name in header if name != "__metadata__"}
    except DAMAGE as error:
        raise InputError(f"{path} has a broken .safetensors header: {reason(error)}") from error
    name = request.choose(path, list(tensors))
    label, tensor = label_of(path, name), tensors[name]
    values = tensor if isinstance(tensor, dict) else {}
    kind, shape, offsets = map(values.get, ("dtype", "shape", "data_offsets"))
    if not isinstance(kind, str) or not _integers(shape) or not _integers(offsets, 2):
        raise InputError(f"{label} has a broken .safetensors header: {short(tensor)}")
    shape, (begin, end) = tuple(shape), offsets
    dtype = _safetensors_dtype(label, kind)
    check_shape(label, shape, dtype)
    if begin < 0 or end - begin != dtype.itemsize * math.prod(shape):
        raise InputError(
            f"{label} has {end - begin} bytes, which don't make {kind} of shape {shape}"
        )
    start = 8 + header_bytes + begin
    if start + end - begin > size:
        raise InputError(
            f"{label} is cut off: it should end at byte {start + end - begin} of {size}"
        )
    return array_at(label, file, start, dtype, shape)


def _integers(value: Any, count: int | None = None) -> TypeGuard[list[int]]:
    """Whether a JSON value is a list of integers, none of them absurd."""
    return (
        isinstance(value, list)
        and count in (None, len(value))
        and all(type(n) is int and abs(n) < 2**64 for n in value)
    )


def _safetensors_dtype(label: str, kind: str) -> np.dtype[Any]:
    if kind == "BF16":
        try:
            import ml_dtypes
        except ModuleNotFoundError as error:
            raise ImportError(
                f"{label} is bfloat16, which needs ml_dtypes:"
                " pip install 'fastloss[safetensors]', or ml_dtypes"
            ) from error
        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    if kind not in _SAFETENSORS_DTYPES:
        raise InputError(
            f"{label} has dtype {short(kind)}, expected BF16, {', '.join(_SAFETENSORS_DTYPES)}"
        )
    return np.dtype(_SAFETENSORS_DTYPES[kind])
