"""The file readers of the command line: every kind of file, and every way one can be wrong.

Layout: a) every kind of file, b) damaged files, c) files that ask for too much, d) what is no file,
e) files that shrink while they are read, f) a short run of the fuzzer.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

import oracle
from fastloss._scoring import InputError, limits, readers, scorer, sources

pytest.register_assert_rewrite("cli_helpers")

from cli_helpers import (
    CLASSES,
    LOGITS,
    RNG,
    SAMPLES,
    TARGET,
    accuracy,
    check,
    check_plain,
    job_of,
    refused,
    run,
    score,
)

pytest_plugins = ("cli_helpers",)
pytestmark = pytest.mark.usefixtures("small_blocks", "same_threads")


# ---- a) every kind of file -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "f8", "f2", ">f2", "i2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy(files, dtype, order):
    logits = LOGITS.astype(dtype, order=order)
    np.save("other.npy", logits)
    report = score("other.npy", "targets.npy")
    assert report["settings"]["dtype"] == str(np.dtype(dtype))
    check(report, oracle.cross_entropy(logits, TARGET), accuracy(logits))


def test_npy_without_reads_at_an_offset(files, monkeypatch):
    """Where the system has no preadv, threads take turns at the file."""
    monkeypatch.delattr(os, "preadv", raising=False)
    check_plain(score("logits.npy", "targets.npy"))


@pytest.mark.parametrize("target_dtype", ["i1", "i2", ">i4", "u1", "u8"])
def test_target_dtypes(files, target_dtype):
    target = np.where(TARGET < 0, 5, TARGET).astype(target_dtype)
    np.save("other.npy", target)
    check(
        score("logits.npy", "other.npy"),
        oracle.cross_entropy(LOGITS, target),
        accuracy(target=target),
    )


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(files, save):
    save("both.npz", logits=LOGITS, labels=TARGET, other=np.ones(3))
    check_plain(score("both.npz"))
    check_plain(score("both.npz", "targets.npy"))
    check_plain(score("logits.npy", "both.npz"))
    save("single.npz", LOGITS)
    check_plain(score("single.npz", "targets.npy"))


def test_npz_member_names(files):
    np.savez("both.npz", x=LOGITS, y=TARGET, z=LOGITS)
    check_plain(score("both.npz", "--logits-name", "x", "--targets-name", "y"))
    line = refused("both.npz")
    assert "'x', 'y', 'z'" in line and "--logits-name" in line
    line = refused("both.npz", "--logits-name", "x", "--targets-name", "t")
    assert "no 't'" in line and "'y'" in line


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_safetensors(files, dtype):
    save_file = pytest.importorskip("safetensors.numpy").save_file
    ml_dtypes = pytest.importorskip("ml_dtypes")
    logits = LOGITS.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    save_file({"a": np.zeros(3, np.uint8), "z": logits, "labels": TARGET}, "both.safetensors")
    report = score("both.safetensors", "--logits-name", "z")
    assert report["settings"]["dtype"] == dtype
    check(report, oracle.cross_entropy(logits, TARGET), accuracy(logits.astype(float)))


def test_parquet(files, table):
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(table, "both.parquet", row_group_size=301)
    check_plain(score("both.parquet"))
    check_plain(score("both.parquet", "--logits-name", "lists"))
    check_plain(score("logits.npy", "both.parquet", "--targets-name", "targets"))
    check_plain(score("both.parquet", "targets.npy"))


@pytest.mark.parametrize("stream", [False, True], ids=["file", "stream"])
@pytest.mark.parametrize("compression", [None, "lz4"])
def test_arrow_ipc(files, table, stream, compression):
    pa = pytest.importorskip("pyarrow")
    options = pa.ipc.IpcWriteOptions(compression=compression)
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new("both.arrow", table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=170)
    check_plain(score("both.arrow"))
    check_plain(score("both.arrow", "--logits-name", "lists"))


def test_arrow_tensor_and_nested_lists(files):
    pa = pytest.importorskip("pyarrow")
    images = LOGITS.reshape(-1, CLASSES, 4)[:200]
    target = RNG.integers(0, CLASSES, (len(images), 4))
    table = pa.table(
        {
            "logits": pa.FixedShapeTensorArray.from_numpy_ndarray(images),
            "lists": pa.array(images.tolist()),
            "targets": pa.array(target.tolist()),
        }
    )
    with pa.ipc.new_file("both.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=37)
    reference = oracle.cross_entropy(images, target)
    right = float((images.argmax(axis=1) == target).mean())
    check(score("both.arrow"), reference, right)
    check(score("both.arrow", "--logits-name", "lists"), reference, right)


# ---- b) damaged files ------------------------------------------------------------------------


def safetensors(dtype: str, start: int, stop: int, data: int) -> bytes:
    """A file whose header promises one tensor, and so many bytes of data."""
    tensor = {"dtype": dtype, "shape": [1000, 7], "data_offsets": [start, stop]}
    header = json.dumps({"x": tensor}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(data)


def npy_header(header: dict) -> bytes:
    text = repr(header).ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


DAMAGED = {
    "empty.npy": b"",
    "text.npy": b"no array at all\n",
    "header.npy": b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4'",
    "minus.npy": npy_header({"descr": "<f4", "fortran_order": False, "shape": (-4, 7)}),
    "huge.npy": npy_header({"descr": "<f4", "fortran_order": False, "shape": (2**62, 2**62)}),
    "code.npy": b"\x93NUMPY\x01\x00\x14\x00__import__('os')   \n",
    "zip.npz": b"PK\x03\x04 and then nothing",
    "table.parquet": b"PAR1 and then nothing PAR1",
    "table.arrow": b"ARROW1\0\0 and then nothing",
    "stream.arrow": b"\xff\xff\xff\xff and then nothing",
    "long.safetensors": b"\xff\xff\xff\0\0\0\0\0{}",
    "broken.safetensors": b"\x03\0\0\0\0\0\0\0{]}",
    "short.safetensors": safetensors("F32", 0, 28000, 100),
    "minus.safetensors": safetensors("F32", -8, 27992, 28000),
    "size.safetensors": safetensors("F32", 0, 27996, 28000),
    "eight.safetensors": safetensors("F8_E4M3", 0, 7000, 7000),
}


@pytest.mark.parametrize(("name", "content"), DAMAGED.items(), ids=DAMAGED)
def test_damaged_files(files, name, content):
    if "arrow" in name or "parquet" in name:
        pytest.importorskip("pyarrow")
    Path(name).write_bytes(content)
    assert name in refused(name, "targets.npy")


def test_files_that_are_cut_off(files):
    np.savez_compressed("whole.npz", logits=LOGITS)
    for source, name in (("logits.npy", "cut.npy"), ("whole.npz", "cut.npz")):
        Path(name).write_bytes(Path(source).read_bytes()[:-500])
        assert name in refused(name, "targets.npy")


def test_a_damaged_member(files):
    """A compressed member whose bytes are wrong is found while it is read."""
    np.savez_compressed("damaged.npz", logits=LOGITS)
    data = bytearray(Path("damaged.npz").read_bytes())
    data[5000:5010] = bytes(10)
    Path("damaged.npz").write_bytes(data)
    assert "damaged.npz:logits" in refused("damaged.npz", "targets.npy", "--output", "out.npy")


def test_pickles_are_never_loaded(files):
    class Bomb:
        def __reduce__(self):
            return (Path("exploded").touch, ())

    np.save("pickle.npy", np.array([Bomb()], object), allow_pickle=True)
    np.savez("pickle.npz", logits=np.array([Bomb()], object))
    assert "pickled" in refused("pickle.npy", "targets.npy")
    assert "pickled" in refused("pickle.npz", "targets.npy")
    assert not Path("exploded").exists()


def test_a_zip_that_holds_something_else(files):
    with zipfile.ZipFile("other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "readme.txt" in refused("other.zip", "targets.npy")


def test_columns_that_do_not_fit(files, table):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(table, "both.parquet")
    assert "string" in refused("both.parquet", "--logits-name", "words")
    assert "'id'" in refused("both.parquet", "--logits-name", "nothing")
    rows = LOGITS.tolist()
    for wrong, text in (
        ([1.0, 2.0], "row 423"),
        (None, "null in row 423"),
        ([None] * 7, "null in row 423"),
    ):
        rows[423] = wrong
        pq.write_table(pa.table({"logits": pa.array(rows), "targets": TARGET}), "rows.parquet")
        assert text in refused("rows.parquet")


# ---- c) files that ask for too much ----------------------------------------------------------


def npy_text(shape: str, descr: str = "<f4") -> bytes:
    """A .npy header with a shape that `npy_header` could not write."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def safetensors_text(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header


def tensor(dtype: object, shape: list, offsets: object) -> bytes:
    """A .safetensors file of a header alone."""
    header = {"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}
    return safetensors_text(json.dumps(header).encode())


def bomb(start: bytes, megabytes: int) -> bytes:
    """A zip archive of a member that inflates to ``start`` and so many megabytes of zeros."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    # After a full flush, packed bytes depend on nothing before them.
    data += (packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)) * megabytes
    name, size = b"logits.npy", min(2**32 - 2, len(start) + (megabytes << 20))
    common = struct.pack("<HHHHHIIIH", 20, 0, 8, 0, 0, 0, len(data), size, len(name))
    member = b"PK\x03\x04" + common + bytes(2) + name + data
    entry = b"PK\x01\x02" + bytes([20, 0]) + common + bytes(16) + name
    end = struct.pack("<HHHHIIH", 0, 0, 1, 1, len(entry), len(member), 0)
    return member + entry + b"PK\x05\x06" + end


DEEP = b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
LONG_NAME = safetensors_text(json.dumps({"n" * 9000: {"dtype": "?"}}).encode())
TOO_MUCH = {
    "text.npy": (lambda: npy_text("(1000, 7)", "<U0"), "has dtype <U0"),
    "old_text.npy": (lambda: npy_text("(1000, 7)", "|a1"), "has dtype '|a1'"),
    "long.npy": (lambda: npy_text("(1000, 7)", "<g16"), "has dtype"),
    "zero.npy": (lambda: npy_text("(0, 99999999999999999999)"), "too large for an array"),
    "rows.npy": (lambda: npy_text("(9223372036854775807, 0)"), "too large for an array"),
    "dimensions.npy": (lambda: npy_text(f"({'0, ' * 70})"), "70 dimensions"),
    "minus.npy": (lambda: npy_text(f"({'-' * 5000}1, 7)"), "header of no array of numbers"),
    "digits.npy": (lambda: npy_text(f"({'9' * 5000}, 7)"), "shape '(99999"),
    "header.npy": (
        lambda: b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + bytes(200),
        "header of 4294967295 bytes",
    ),
    "nothing.npy": (
        lambda: npy_text("(4611686018427387904, 0)", "|i1"),
        "(4611686018427387904, 0)",
    ),
    "deep.safetensors": (lambda: safetensors_text(DEEP), "broken .safetensors header"),
    "zeros.safetensors": (lambda: tensor("F32", [2**62, 0, 2**62], [0, 0]), "too large"),
    "list.safetensors": (lambda: tensor(["F32"], [1000, 7], [0, 0]), "'dtype': ['F32']"),
    "float.safetensors": (lambda: tensor("F32", [1.5, 7], [0, 42]), "'shape': [1.5, 7]"),
    "offsets.safetensors": (lambda: tensor("F32", [1], [0, 4, 8]), "'data_offsets': [0, 4, 8]"),
    "name.safetensors": (lambda: LONG_NAME, "broken .safetensors header"),
    "row.npz": (lambda: bomb(npy_text("(1, 1500000000)"), 5723), "rows of 6000000000 bytes"),
    "scalar.npz": (lambda: bomb(npy_text("()"), 2000), "has shape ()"),
}


@pytest.mark.parametrize(("name", "file"), TOO_MUCH.items(), ids=TOO_MUCH)
def test_files_that_ask_for_too_much(files, name, file):
    content, text = file
    Path(name).write_bytes(content())
    tracemalloc.start()
    try:
        line = refused(name, "targets.npy")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert name in line and text in line
    assert len(line) < 400
    assert peak < 64e6


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zips_that_inflate_without_a_bound(files, method):
    with zipfile.ZipFile("other.npz", "w", method) as archive:
        archive.write("logits.npy")
    assert "expected deflate" in refused("other.npz", "targets.npy")


def test_a_directory_of_a_zip_that_is_too_long(files, monkeypatch):
    np.savez("long.npz", **{f"array{i}": np.zeros(1) for i in range(50)})
    monkeypatch.setattr(limits, "MOST_DIRECTORY_BYTES", 2000)
    assert "directory takes more than 2000 bytes" in refused("long.npz", "targets.npy")


@pytest.mark.parametrize("shape", ["(1000,7)", "(1000 , 7L, )"])
def test_headers_of_other_programs(files, shape):
    """Keys in another order, other quotes and spaces; Python 2 wrote long integers."""
    text = f'{{"shape":{shape},"fortran_order":False,"descr":"<f4"}}'
    header = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()
    Path("other.npy").write_bytes(header + LOGITS.tobytes())
    check_plain(score("other.npy", "targets.npy"))


def test_more_and_fewer_rows_than_a_stream_promises(files):
    chunks = [LOGITS[:300], LOGITS[300:]]
    for promised, text in ((900, "more rows than the 900"), (1100, "ends 100 rows early")):
        source = sources.StreamedSource(
            "stream", (promised, CLASSES), LOGITS.dtype, iter(chunks), lambda: None
        )
        targets = sources.ArraySource("targets", np.zeros(promised, int))
        job = scorer.plan(source, targets, scorer.Options())
        with pytest.raises(InputError, match=text):
            list(job.blocks(lambda scores: None))


# ---- d) what is no file ----------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with a name")
def test_a_pipe_is_said_to_be_one(files):
    os.mkfifo("pipe")
    for arguments in (
        ["pipe", "targets.npy"],
        ["logits.npy", "pipe"],
        ["pipe"],
        ["logits.npy", "targets.npy", "--weight", "pipe"],
    ):
        assert "pipe is a pipe (FIFO), expected a file" in refused(*arguments)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="the system has no devices as files")
def test_a_device_is_said_to_be_one(files):
    assert "/dev/zero is a device, expected a file" in refused("/dev/zero", "targets.npy")


def test_names_that_would_confuse_the_report(files):
    """Words in brackets are styles to the library that lays the report out."""
    Path("logits.npy").rename("[bold] :smile:.npy")
    assert "[bold] :smile:.npy" in run("[bold] :smile:.npy", "targets.npy").stdout


def test_names_that_would_confuse_a_terminal(files):
    Path("logits.npy").rename("\x1b[31mred\r.npy")
    line = refused("\x1b[31mred\r.npy", "nowhere.npy")
    assert "\x1b" not in line
    name = "\x1b[31mred\r.npy"
    assert "\x1b" not in run(name, "targets.npy").stdout


# ---- e) files that shrink while they are read ------------------------------------------------


def write_kind(kind: str) -> tuple[str, dict]:
    """LOGITS in a file of some kind, and the options that go with it."""
    if kind == "C order":
        np.save("x.npy", LOGITS)
    elif kind == "Fortran order":
        np.save("x.npy", np.asfortranarray(LOGITS))
    elif kind == "axis 0":
        np.save("x.npy", np.ascontiguousarray(LOGITS.T))
        return "x.npy", {"axis": 0}
    elif kind == "npz":
        np.savez("x.npz", LOGITS)
    elif kind == "compressed npz":
        np.savez_compressed("x.npz", LOGITS)
    elif kind == "safetensors":
        data = tensor("F32", [SAMPLES, CLASSES], [0, LOGITS.nbytes]) + LOGITS.tobytes()
        Path("x.safetensors").write_bytes(data)
    else:
        pa = pytest.importorskip("pyarrow")
        column = pa.FixedSizeListArray.from_arrays(LOGITS.ravel(), CLASSES)
        table = pa.table({"x": column})
        if kind == "parquet":
            pq = pytest.importorskip("pyarrow.parquet")
            pq.write_table(table, "x.parquet", row_group_size=100)
        else:
            new = pa.ipc.new_file if kind == "arrow" else pa.ipc.new_stream
            with new("x.arrow", table.schema) as writer:
                writer.write_table(table, max_chunksize=100)
    return next(path.name for path in Path().glob("x.*")), {}


KINDS = (
    *("C order", "Fortran order", "axis 0", "npz", "compressed npz", "safetensors"),
    *("parquet", "arrow", "arrow stream"),
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.7, 0.3])
def test_logits_that_are_cut_off_while_they_are_read(files, kind, share):
    name, options = write_kind(kind)
    whole = [s.loss for s, _ in job_of(name, "targets.npy", **options).blocks(lambda s: None)]
    np.testing.assert_allclose(
        np.concatenate(whole), oracle.cross_entropy(LOGITS, TARGET).losses, rtol=1e-6
    )
    job = job_of(name, "targets.npy", **options)
    os.truncate(name, int(Path(name).stat().st_size * share))
    with pytest.raises(InputError, match=r"cut off|damaged"):
        list(job.blocks(lambda scores: None))


@pytest.mark.parametrize("what", ["targets", "probabilities", "sample_weight"])
def test_other_files_that_are_cut_off_while_they_are_read(files, what):
    np.save("probabilities.npy", oracle.softmax(LOGITS))
    np.save("sample_weight.npy", np.ones(SAMPLES))
    options = {}
    targets = "probabilities.npy" if what == "probabilities" else "targets.npy"
    if what == "sample_weight":
        request = readers.Request("weight", "", None, ())
        options["sample_weight"] = readers.open_source(Path("sample_weight.npy"), request)
    job = job_of("logits.npy", targets, **options)
    os.truncate(f"{what}.npy", 5000)
    with pytest.raises(InputError, match=rf"{what}\.npy was cut off"):
        list(job.blocks(lambda scores: None))


# ---- f) a short run of the fuzzer ------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="the fuzzer limits memory as POSIX does")
def test_the_fuzzer_finds_nothing_in_a_moment(tmp_path):
    script = Path(__file__).parents[1] / "fuzz" / "files.py"
    command = [sys.executable, str(script), "--seconds", "3", "--finds", str(tmp_path / "finds")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 finds" in result.stdout
    assert not result.stdout.startswith("0 files")
