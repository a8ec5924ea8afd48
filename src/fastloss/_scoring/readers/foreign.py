"""Files that this command does not read: what each is, and what to do instead."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_SAVE = "save the array with numpy.save"
_PICKLE = "which may hold any code and is never loaded"
_TORCH = (
    f"a PyTorch file, {_PICKLE}: save the tensor with numpy.save(NAME, tensor.numpy()) "
    "or safetensors.torch.save_file"
)
_HDF5 = "an HDF5 file: save its dataset with numpy.save(NAME, file[DATASET][:])"

_BY_START = (
    (b"\x89HDF\r\n\x1a\n", _HDF5),
    (b"\x1f\x8b", "packed with gzip: unpack it first (gunzip)"),
    (b"BZh", "packed with bzip2: unpack it first (bunzip2)"),
    (b"\xfd7zXZ\0", "packed with xz: unpack it first (unxz)"),
    (b"\x28\xb5\x2f\xfd", "packed with Zstandard: unpack it first (unzstd)"),
    (b"MATLAB ", f"a MATLAB file: {_SAVE}(NAME, scipy.io.loadmat(FILE)[VARIABLE])"),
    (b"GGUF", "a GGUF model, which holds weights and no logits"),
    (b"ORC", "an ORC file: write it as Parquet"),
    (b"Obj\x01", "an Avro file: write it as Parquet"),
    (b"FEA1", "a Feather file of version 1: write it as Feather 2 (Arrow IPC) or Parquet"),
    (b"SQLite format 3\0", "an SQLite database: write the columns as Parquet or .csv"),
)
_BY_SUFFIX = {
    **dict.fromkeys((".pt", ".pth", ".ckpt"), _TORCH),
    **dict.fromkeys((".pkl", ".pickle", ".joblib"), f"a pickle, {_PICKLE}: {_SAVE}"),
    **dict.fromkeys((".h5", ".hdf5", ".he5"), _HDF5),
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), "JSON: write the column as Parquet or .csv"),
    ".tfrecord": f"a TFRecord file: {_SAVE}",
    ".txt": "text: a table of numbers is read from a .csv",
    ".onnx": "an ONNX model, which holds weights and no logits",
    ".mat": f"a MATLAB file: {_SAVE}(NAME, scipy.io.loadmat(FILE)[VARIABLE])",
    ".msgpack": f"a MessagePack file: {_SAVE}",
    ".bin": f"raw bytes or a PyTorch file, neither of which says what array it holds: {_SAVE}",
    ".dat": f"raw bytes, which don't say what array they hold: {_SAVE}",
    ".raw": f"raw bytes, which don't say what array they hold: {_SAVE}",
}
FOREIGN_SUFFIXES = frozenset(_BY_SUFFIX)


def foreign_kind(path: Path, head: bytes) -> str | None:
    """What a file is, and what to do instead of passing it here; None if that isn't known."""
    for start, kind in _BY_START:
        if head.startswith(start):
            return kind
    suffix = path.suffix.lower()
    # Protocols 2 to 5 of pickle; PyTorch before 1.6 wrote several of them, one behind the other.
    if len(head) > 1 and head[0] == 0x80 and 2 <= head[1] <= 5 and suffix not in _BY_SUFFIX:
        return f"a pickle, {_PICKLE}: {_SAVE}"
    return _BY_SUFFIX.get(suffix)


def foreign_zip(names: Iterable[str]) -> str | None:
    """What a zip archive without arrays of NumPy is, by the names of its members."""
    for name in names:
        if name.endswith("/data.pkl") or name == "data.pkl":
            return _TORCH
        if name.startswith("xl/"):
            return "an Excel workbook: save the sheet as .csv"
    return None
