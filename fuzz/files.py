"""Fuzz the file readers of the command line: damaged files must end in a result or an `InputError`.

    python fuzz/files.py --seconds 20
    python fuzz/files.py --seconds 3600 --seed 7
    python fuzz/files.py --seed 7 --only 12345     # one file again, in this process

Valid .npy, .npz, .safetensors, .csv, Parquet and Arrow IPC files are damaged (bits, lengths,
numbers in headers, cuts, splices) and scored with random options, as `fastloss score` does it.
Which file a number stands for depends on the seed alone. A find is any other exception, a warning,
a crash, a message of no or several lines, more than 10 s of processor time or 1 GB of memory, and
an .npy that `numpy.load` reads differently. Finds are saved in ``fuzz/finds``; the exit status is 1
if there are any.

Layout: a) valid files, b) damage, c) one case, d) the worker, which a crash may end, and its
watcher.
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import json
import random
import re
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fastloss
from fastloss._scoring import InputError, blocks, scorer, totals
from fastloss._scoring.readers import Request, open_source
from fastloss._scoring.sources import Source

MEMORY = 4 << 30
"""Address space of a worker, in bytes."""
MOST_RSS = 1 << 30
MOST_SECONDS = 10.0
HANG_SECONDS = 120
LEAST = 20
"""Files of a worker, however slowly it starts."""

# ---- a) valid files --------------------------------------------------------------------------

ROWS, CLASSES = 40, 7


def valid_files() -> dict[str, list[bytes]]:
    """Files of each kind, by their suffix. Without pyarrow there are none of its kinds."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((ROWS, CLASSES)).astype(np.float32)
    targets = rng.integers(0, CLASSES, ROWS)
    arrays = [
        logits,
        np.asfortranarray(logits),
        logits.astype(">f8"),
        logits.astype(np.float16),
        (logits * 10).astype(np.int8),
        logits.reshape(ROWS, CLASSES, 1, 1),
        logits[0],
        logits[0, 0],
        logits[:0],
        logits > 0,
    ]
    npy = [_npy(array) for array in arrays]
    npy.append(_npy(logits, (2, 0)))
    npz = [_npz(_npy(array), _npy(targets), method) for array in arrays[:7] for method in (0, 8)]
    return {
        ".npy": npy,
        ".npz": npz,
        ".safetensors": [_safetensors(array, targets) for array in arrays],
        ".csv": _csv(logits, targets),
        **_columnar(logits, targets),
    }


def _npy(array: Any, version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asanyarray(array), version)
    return file.getvalue()


def _npz(logits: bytes, targets: bytes, method: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("logits.npy", logits)
        archive.writestr("targets.npy", targets)
    return file.getvalue()


_SAFETENSORS = {"f4": "F32", "f8": "F64", "f2": "F16", "i1": "I8", "i8": "I64", "b1": "BOOL"}


def _safetensors(logits: Any, targets: Any) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "np"}}
    data = b""
    for name, array in (("logits", logits), ("targets", targets)):
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        header[name] = {
            "dtype": _SAFETENSORS[array.dtype.str[1:]],
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + little.nbytes],
        }
        data += little.tobytes()
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _csv(logits: Any, targets: Any) -> list[bytes]:
    names = [*(f"logits_{c}" for c in range(CLASSES)), "targets"]
    rows = [
        [*map(str, row), str(t)] for row, t in zip(logits.tolist(), targets.tolist(), strict=True)
    ]
    return [
        end.join(mark.join(row) for row in lines).encode()
        for lines in (
            [names, *rows],
            [row[:-1] for row in rows],
            [["targets"], *(r[-1:] for r in rows)],
        )
        for mark, end in ((",", "\n"), ("\t", "\r\n"), (";", "\n\n"))
    ]


def _columnar(logits: Any, targets: Any) -> dict[str, list[bytes]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        return {}
    tables = [
        pa.table({"logits": column, "targets": targets})
        for column in (
            pa.FixedSizeListArray.from_arrays(logits.ravel(), CLASSES),
            pa.array(logits.tolist()),
            pa.FixedShapeTensorArray.from_numpy_ndarray(logits),
            pa.array(logits[:, :, None].tolist()),
            pa.array(logits[:, 0].astype(np.float16)),
        )
    ]
    files: dict[str, list[bytes]] = {".parquet": [], ".arrow": [], ".arrows": []}
    for table in tables:
        for codec in ("none", "snappy", "gzip", "zstd"):
            file = io.BytesIO()
            pq.write_table(
                table, file, row_group_size=17, compression=codec, use_dictionary=codec == "none"
            )
            files[".parquet"].append(file.getvalue())
        for codec in (None, "lz4", "zstd"):
            options = pa.ipc.IpcWriteOptions(compression=codec)
            for suffix, new in ((".arrow", pa.ipc.new_file), (".arrows", pa.ipc.new_stream)):
                file = io.BytesIO()
                with new(file, table.schema, options=options) as writer:
                    writer.write_table(table, max_chunksize=17)
                files[suffix].append(file.getvalue())
    return files


# ---- b) damage -------------------------------------------------------------------------------

_NUMBERS = [
    *(0, 1, 2, 3, 7, 8, 16, 255, 256, 1000, 65535, 65536),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**60, 2**62, 2**63 - 1, 2**63, 2**64 - 1),
]
_TEXTS = [
    *(b"-", b"(", b"[", b"{", b'"', b"'", b",", b":", b"0,", b"1e9", b"True", b"null", b"NaN"),
    *(b"\\", b"\0", b"\n", b"\x1b[31m", "é\u2028".encode(), b"99999999999999999999", b"0x10", b"L"),
]


def _place(rng: random.Random, data: bytearray) -> int:
    """A place in a file, more often near its ends, where headers and footers are."""
    size = max(1, len(data))
    near = min(size, 300)
    return rng.choice((rng.randrange(size), rng.randrange(near), size - 1 - rng.randrange(near)))


def _flip(rng: random.Random, data: bytearray, other: bytes) -> None:
    if data:
        data[_place(rng, data)] ^= 1 << rng.randrange(8)


def _set(rng: random.Random, data: bytearray, other: bytes) -> None:
    if data:
        data[_place(rng, data)] = rng.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF, rng.randrange(256)))


def _integer(rng: random.Random, data: bytearray, other: bytes) -> None:
    """Write a number of two, four or eight bytes."""
    width = rng.choice((2, 4, 8))
    number = rng.choice(_NUMBERS) + rng.choice((0, 0, 0, -1, 1))
    at = _place(rng, data)
    data[at : at + width] = (number % 256**width).to_bytes(width, "little")


def _digits(rng: random.Random, data: bytearray, other: bytes) -> None:
    """Put another number in the place of one that is written in digits."""
    found = list(re.finditer(rb"\d+", bytes(data[:1000])))
    if found:
        match = rng.choice(found)
        number = str(rng.choice((-1, 1)) * rng.choice(_NUMBERS)).encode()
        data[match.start() : match.end()] = number


def _text(rng: random.Random, data: bytearray, other: bytes) -> None:
    """Insert text, often a lot of it; the length in front of the header may follow."""
    at = _place(rng, data)
    data[at:at] = rng.choice(_TEXTS) * rng.choice((1, 1, 2, 70, 5000))


def _delete(rng: random.Random, data: bytearray, other: bytes) -> None:
    at = _place(rng, data)
    del data[at : at + rng.choice((1, 2, 4, 8, 64, 1000))]


def _cut(rng: random.Random, data: bytearray, other: bytes) -> None:
    del data[_place(rng, data) :]


def _repeat(rng: random.Random, data: bytearray, other: bytes) -> None:
    at, length = _place(rng, data), rng.choice((1, 8, 24, 64, 500))
    data[at:at] = data[at : at + length] * rng.choice((1, 2, 50))


def _splice(rng: random.Random, data: bytearray, other: bytes) -> None:
    at, start = _place(rng, data), rng.randrange(max(1, len(other)))
    part = other[start : start + rng.choice((4, 16, 100, 1000))]
    data[at : at + len(part)] = part


_DAMAGE: list[Callable[[random.Random, bytearray, bytes], None]] = [
    *(_flip, _set, _integer, _integer, _digits, _text, _delete, _cut, _repeat, _splice)
]


def _refit(suffix: str, data: bytearray) -> None:
    """Make the header's length fit again, so that the damage in it is looked at."""
    if suffix == ".npy" and data[:6] == b"\x93NUMPY" and (end := data.find(b"\n")) > 0:
        width = 2 if data[6:7] == b"\x01" else 4
        data[8 : 8 + width] = max(0, end + 1 - 8 - width).to_bytes(8, "little")[:width]
    elif suffix == ".safetensors" and (end := data.find(b"}}")) > 0:
        data[:8] = struct.pack("<Q", max(0, end + 2 - 8))


def damaged(files: dict[str, list[bytes]], seed: int, number: int) -> tuple[str, bytes]:
    """The suffix and content of a file; the same for the same seed and number."""
    rng = random.Random(f"{seed}/{number}")
    suffix = rng.choice(list(files))
    data, other = bytearray(rng.choice(files[suffix])), rng.choice(files[suffix])
    inside = suffix == ".npz" and rng.random() < 0.5
    if inside:  # damage what is packed, and pack it: else most is found by a checksum
        data, other = bytearray(rng.choice(files[".npy"])), rng.choice(files[".npy"])
    for _ in range(rng.choice((1, 1, 1, 1, 2, 3, 6))):
        rng.choice(_DAMAGE)(rng, data, other)
    if rng.random() < 0.7:
        _refit(".npy" if inside else suffix, data)
    if inside:
        return suffix, _npz(bytes(data), rng.choice(files[".npy"]), rng.choice((0, 8)))
    return suffix, bytes(data)


# ---- c) one case -----------------------------------------------------------------------------


def score(path: Path, targets: Path, rng: random.Random) -> str:
    """Score a file as the command does; the message where it is refused."""
    # Most files that can be read should be scored, and not refused for their shape.
    options = scorer.Options()
    if rng.random() < 0.25:
        options.loss = rng.choice(("nll", "bce-with-logits"))
    if options.loss != "bce-with-logits" and rng.random() < 0.2:
        options.axis = rng.choice((0, -1))
    sources: list[Source] = []
    try:
        name = rng.choice((None, None, "logits"))
        sources.append(open_source(path, Request("logits", "--logits-name", name, ("logits",))))
        own = path.suffix != ".npy" and rng.random() < 0.8
        place = path if own else targets
        sources.append(open_source(place, Request("targets", "--targets-name", None, ("targets",))))
        if options.loss != "bce-with-logits" and rng.random() < 0.1:
            options.sample_weight = open_source(path, Request("weight", "", None, ("targets",)))
            sources.append(options.sample_weight)
        job = scorer.plan(sources[0], sources[1], options)
        summary = totals.Summary(job)
        for _, part in job.blocks(summary.of):
            summary.merge(part)
        if not 0 <= summary.correct <= summary.samples - summary.ignored - summary.non_finite:
            raise AssertionError(f"{summary.correct} right of {summary.samples}")
    except InputError as error:
        line = " ".join(str(error).split())
        if not line or len(line) > 2000:
            raise AssertionError(f"a message of {len(line)} characters") from error
        return line
    finally:
        for source in sources:
            source.close()
    return ""


def compare_with_numpy(path: Path) -> None:
    """An .npy that is read has the values that NumPy reads."""
    try:
        source = open_source(path, Request("array", "", None, ()))
    except InputError:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of NumPy, about the header
            expected = np.load(path, allow_pickle=False)
    except Exception:  # NumPy refuses more headers than are refused here
        return
    finally:
        source.close()
    source = open_source(path, Request("array", "", None, ()))
    if (source.shape, source.dtype) != (expected.shape, expected.dtype):
        raise AssertionError(
            f"{source.dtype} {source.shape}, NumPy {expected.dtype} {expected.shape}"
        )
    if source.ndim and expected.size and source.read_all().tobytes() != expected.tobytes():
        raise AssertionError("other values than NumPy's")
    source.close()


def run_case(folder: Path, files: dict[str, list[bytes]], seed: int, number: int) -> str:
    """Damage a file, score it, and raise where that is a find."""
    suffix, data = damaged(files, seed, number)
    path = folder / f"case{suffix}"
    path.write_bytes(data)
    rng = random.Random(f"{seed}/{number}/options")
    fastloss.set_num_threads(2 if rng.random() < 0.05 else 1)
    start = time.process_time()
    message = score(path, folder / "targets.npy", rng)
    if suffix == ".npy":
        compare_with_numpy(path)
    if (seconds := time.process_time() - start) > MOST_SECONDS:
        raise AssertionError(f"{seconds:.1f} s of processor time")
    return message


# ---- d) worker and watcher -------------------------------------------------------------------


def prepare(folder: Path) -> dict[str, list[bytes]]:
    np.save(folder / "targets.npy", np.arange(ROWS) % CLASSES)
    # Small blocks, so that these small files are read in many.
    blocks.BLOCK_BYTES = 9 * CLASSES * 4
    warnings.simplefilter("error")
    return valid_files()


def work(folder: Path, finds: Path, seed: int, first: int, seconds: float) -> None:
    """Run cases until the time is up. The number of the one at hand is always in a file."""
    import resource

    files = prepare(folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    end = time.monotonic() + seconds
    number = first
    refused = 0
    with (folder / "number").open("wb", buffering=0) as progress:
        while time.monotonic() < end or number < first + LEAST:
            progress.seek(0)
            progress.write(b"%20d %20d" % (number, refused))
            faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
            try:
                refused += bool(run_case(folder, files, seed, number))
                now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                grown, peak = (now - peak) * 1024, max(now, peak)
                if grown > MOST_RSS:
                    raise AssertionError(f"{grown} bytes of memory")
            except Exception as error:
                save(finds, files, seed, number, f"{type(error).__name__}: {error}")
            number += 1
        progress.seek(0)
        progress.write(b"%20d %20d" % (number, refused))


def save(finds: Path, files: dict[str, list[bytes]], seed: int, number: int, text: str) -> None:
    finds.mkdir(parents=True, exist_ok=True)
    suffix, data = damaged(files, seed, number)
    (finds / f"{seed}-{number}{suffix}").write_bytes(data)
    print(f"find: --seed {seed} --only {number} ({suffix}): {text[:500]}", flush=True)
    with (finds / "finds.txt").open("a") as log:
        log.write(f"{seed} {number} {suffix} {text[:500]!r}\n")


def watch(finds: Path, seed: int, seconds: float) -> int:
    """Run workers until the time is up: a crash ends one, and the next goes on behind it."""
    end = time.monotonic() + seconds
    number, refused, found = 0, 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = valid_files()
        while (left := end - time.monotonic()) > 0 or not number:
            first = number
            command = [
                sys.executable,
                __file__,
                "--seed",
                str(seed),
                "--seconds",
                str(max(left, 0.0)),
            ]
            command += ["--finds", str(finds), "--worker", str(folder), "--first", str(first)]
            worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            out, err = worker.communicate()
            sys.stdout.write(out.decode())
            found += out.count(b"find: ")
            progress = folder / "number"
            number, more = map(int, progress.read_bytes().split()) if progress.exists() else (0, 0)
            refused += more
            if worker.returncode:
                if not progress.exists():
                    sys.exit(f"the worker did not start:\n{err.decode()}")
                text = f"exit status {worker.returncode}: {err.decode()[-2000:]}"
                save(finds, files, seed, number, text)
                found += 1
                number += 1
    print(f"{number:,} files ({refused:,} refused), {found} finds; seed {seed}, {seconds:g} s")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="NUMBER", help="run one file in this process")
    parser.add_argument("--finds", type=Path, default=Path(__file__).parent / "finds")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        work(options.worker, options.finds, options.seed, options.first, options.seconds)
    elif options.only is not None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            print(run_case(folder, prepare(folder), options.seed, options.only) or "scored")
    else:
        sys.exit(bool(watch(options.finds, options.seed, options.seconds)))


if __name__ == "__main__":
    main()
