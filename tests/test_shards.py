"""Inputs of the command as pipelines write them: many files as one array, tables, tokens.

Layout: a) eight shards of every kind, b) which files and in what order, c) shards that are missing
or don't fit, d) .csv, e) tokens, f) files of other kinds.
"""

from __future__ import annotations

import gzip
import json
import os
import pickle
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import oracle
from fastloss._scoring import InputError, inputs, scorer
from fastloss._scoring.readers.files import Request
from fastloss._scoring.readers.shards import open_input

pytest.register_assert_rewrite("cli_helpers")

from cli_helpers import (
    CLASSES,
    LOGITS,
    SAMPLES,
    TARGET,
    accuracy,
    check,
    check_plain,
    refused,
    run,
    score,
)

pytest_plugins = ("cli_helpers",)
pytestmark = pytest.mark.usefixtures("small_blocks", "same_threads")

# Eight shards of different lengths, one of them empty.
ENDS = [0, 100, 101, 333, 333, 500, 640, 900, SAMPLES]
PARTS = [slice(a, b) for a, b in pairwise(ENDS)]


# ---- a) eight shards of every kind -----------------------------------------------------------


def arrow_table(part: slice):
    pa = pytest.importorskip("pyarrow")
    lists = pa.FixedSizeListArray.from_arrays(LOGITS[part].ravel(), CLASSES)
    return pa.table({"logits": lists, "targets": TARGET[part]})


def write_ipc(path: Path, table, stream: bool) -> None:
    pa = pytest.importorskip("pyarrow")
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=77)


def save_shard(kind: str, path: Path, part: slice) -> None:
    if kind == "npz":
        np.savez(path, logits=LOGITS[part], targets=TARGET[part])
    elif kind == "packed npz":
        np.savez_compressed(path, logits=LOGITS[part], targets=TARGET[part])
    elif kind == "safetensors":
        save_file = pytest.importorskip("safetensors.numpy").save_file
        save_file({"logits": LOGITS[part], "targets": TARGET[part]}, path)
    elif kind == "parquet":
        pytest.importorskip("pyarrow.parquet").write_table(arrow_table(part), path)
    elif kind in ("arrow", "arrow stream"):
        write_ipc(path, arrow_table(part), kind == "arrow stream")
    else:
        assert kind == "csv"
        names = ",".join(f"logits_{c}" for c in range(CLASSES)) + ",targets\n"
        rows = zip(LOGITS[part].tolist(), TARGET[part].tolist(), strict=True)
        path.write_text(names + "".join(f"{','.join(map(repr, r))},{t}\n" for r, t in rows))


SUFFIXES = {
    **{"npz": "npz", "packed npz": "npz", "safetensors": "safetensors", "parquet": "parquet"},
    **{"arrow": "arrow", "arrow stream": "arrow", "csv": "csv"},
}


@pytest.mark.parametrize("kind", SUFFIXES)
def test_a_folder_of_eight_shards(files, kind):
    """The columnar kinds have shards without rows, too."""
    folder = Path("shards")
    folder.mkdir()
    parts = [part for part in PARTS if kind != "csv" or part.stop > part.start]
    for number, part in enumerate(parts, 1):
        save_shard(kind, folder / f"part-{number}.{SUFFIXES[kind]}", part)
    (folder / "README.md").write_text("not an array")
    (folder / "_SUCCESS").touch()
    check_plain(score(folder))
    check_plain(score(folder, "targets.npy"))
    check_plain(score("logits.npy", f"shards/*.{SUFFIXES[kind]}"))


@pytest.mark.parametrize("how", ["folder", "pattern", "option", "option in another order"])
def test_eight_npy_files(files, how):
    Path("x").mkdir()
    names = []
    for number, part in enumerate(PARTS):
        names.append(f"x/logits-{number:05}-of-00008.npy")
        np.save(names[-1], LOGITS[part])
    arguments = {
        "folder": ["x", "targets.npy"],
        "pattern": ["x/logits-*.npy", "targets.npy"],
        "option": [*(w for n in names for w in ("--logits", n)), "--targets", "targets.npy"],
    }
    arguments["option in another order"] = [
        *(w for n in names[::-1] for w in ("--logits", n)),
        *("--targets", "targets.npy"),
    ]
    report = score(*arguments[how])
    check_plain(report)
    assert report["settings"]["shape"] == [SAMPLES, CLASSES]
    assert report["settings"]["logits"] == "x/logits-*-of-00008.npy (8 files)"


def test_logits_and_targets_in_one_folder(files):
    Path("x").mkdir()
    for number, part in enumerate(PARTS):
        np.save(f"x/logits_{number}.npy", LOGITS[part])
        np.save(f"x/targets_{number}.npy", TARGET[part])
    check_plain(score("x"))
    check_plain(score("x", "x"))


def test_shards_of_targets_weights_and_probabilities(files):
    probs = oracle.softmax(LOGITS[::-1]).astype(np.float32)
    weight = np.linspace(0, 2, SAMPLES)
    for name, array in (("p", probs), ("w", weight)):
        Path(name).mkdir()
        for number, part in enumerate(PARTS):
            np.save(f"{name}/{number}.npy", array[part])
    report = score("logits.npy", "p", "--sample-weight", "w")
    reference = oracle.cross_entropy(LOGITS, probs, sample_weight=weight)
    check(report, reference, accuracy(target=probs.argmax(axis=1)))
    assert report["perplexity"] is None


@pytest.mark.parametrize("soft", [False, True])
def test_shards_of_classes_first_join_along_the_samples(files, soft):
    target = oracle.softmax(LOGITS[::-1]).astype(np.float32) if soft else TARGET
    Path("x").mkdir()
    Path("y").mkdir()
    for number, part in enumerate(PARTS):
        np.save(f"x/{number}.npy", LOGITS[part].T)
        np.save(f"y/{number}.npy", target[part].T)
    report = score("x", "y", "--axis", 0)
    right = accuracy(target=target.argmax(axis=1)) if soft else accuracy()
    check(report, oracle.cross_entropy(LOGITS, target), right)


def test_a_hugging_face_data_set(files):
    """Files in the order of state.json, which here is not that of their names."""
    folder = Path("set")
    folder.mkdir()
    names = [f"data-{n:05}-of-00008.arrow" for n in (3, 1, 2, 0, 4, 5, 7, 6)]
    for name, part in zip(names, PARTS, strict=True):
        write_ipc(folder / name, arrow_table(part), stream=True)
    (folder / "dataset_info.json").write_text("{}")
    state = {"_data_files": [{"filename": name} for name in names], "_split": "test"}
    (folder / "state.json").write_text(json.dumps(state))
    check_plain(score(folder))
    (folder / names[5]).unlink()
    assert f"lacks {names[5]}, which its state.json lists" in refused(folder)
    (folder / "state.json").write_text(json.dumps({**state, "_indices_files": [{"filename": "i"}]}))
    assert "flatten_indices" in refused(folder)
    (folder / "state.json").write_text("[")
    assert "state.json is no JSON" in refused(folder)


def test_a_data_set_of_the_library_itself(files):
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict({"logits": LOGITS.tolist(), "targets": TARGET.tolist()})
    datasets.DatasetDict({"test": made}).save_to_disk("set", num_shards={"test": 8})
    check_plain(score("set/test"))
    assert "has splits" in refused("set") and "'test'" in refused("set")


def test_a_parquet_data_set(files):
    pq = pytest.importorskip("pyarrow.parquet")
    for number, part in enumerate(PARTS):
        folder = Path("set") / f"day={number // 3}"
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(arrow_table(part), folder / f"part-{number}.parquet")
    (Path("set") / "_common_metadata").write_bytes(b"PAR1")
    check_plain(score("set"))


@pytest.mark.parametrize("listed", ["tensors", "files"])
def test_an_index_of_safetensors(files, listed):
    """The index tells the order: of names with numbers, and of names without."""
    save_file = pytest.importorskip("safetensors.numpy").save_file
    folder = Path("x")
    folder.mkdir()
    weight_map = {}
    for number, part in enumerate(PARTS):
        file = f"{(number * 5) % 8}.safetensors"
        name = f"logits.{number}" if listed == "tensors" else f"logits_{'hgfedcba'[number]}"
        save_file({name if listed == "tensors" else "logits": LOGITS[part]}, folder / file)
        weight_map[name] = file
    if listed == "files":
        weight_map = {f"logits.{n}": file for n, file in enumerate(weight_map.values())}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    check_plain(score(folder, "targets.npy"))
    check_plain(score(index, "targets.npy"))
    (folder / "5.safetensors").unlink()
    assert "lists 5.safetensors, which is missing" in refused(folder, "targets.npy")
    index.write_text('{"weight_map": [1]}')
    assert "no weight_map" in refused(folder, "targets.npy")


def test_an_index_in_the_order_of_letters(files):
    """JSON with sorted keys has logits.10 before logits.2."""
    save_file = pytest.importorskip("safetensors.numpy").save_file
    ends = np.linspace(0, SAMPLES, 13).astype(int)
    weight_map = {}
    for number in range(12):
        name = f"logits.{number}"
        weight_map[name] = f"{number}.safetensors"
        save_file({name: LOGITS[ends[number] : ends[number + 1]]}, weight_map[name])
    Path("i.index.json").write_text(json.dumps({"weight_map": weight_map}, sort_keys=True))
    check_plain(score("i.index.json", "targets.npy"))


# ---- b) which files and in what order --------------------------------------------------------


def opened(*paths) -> np.ndarray:
    request = Request("logits", "--logits-name", None, inputs.LOGITS)
    source = open_input([Path(path) for path in paths], request)
    try:
        return source.read_all()
    finally:
        source.close()


def save_numbers(folder: str, names: list[str]) -> None:
    Path(folder).mkdir()
    for name in names:
        number = int("".join(filter(str.isdigit, name)) or "7")
        np.save(f"{folder}/{name}.npy", np.array([number], float))


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["x2", "x1", "x10", "x9", "x3", "x4", "x5", "x6", "x7", "x8"], [*range(1, 11)]),
        (["x_0", "x_1", "x_2"], [0, 1, 2]),
        (["step-1000", "step-2000", "step-5000"], [1000, 2000, 5000]),
        (["d20240131", "d20240201", "d20240202"], [20240131, 20240201, 20240202]),
        (["logits", "logits2"], [7, 2]),
    ],
)
def test_natural_order(files, names, order):
    save_numbers("x", names)
    assert opened("x").tolist() == order


def test_files_given_one_by_one_keep_their_order_without_numbers(files):
    save_numbers("x", ["b", "a1"])
    assert opened("x/b.npy", "x/a1.npy").tolist() == [7, 1]
    assert "given twice" in refused("--logits", "x/b.npy", "--logits", "x/b.npy")


def test_an_input_given_twice(files):
    line = refused("logits.npy", "targets.npy", "--logits", "logits.npy")
    assert "LOGITS is given twice" in line
    assert "LOGITS is missing" in refused("--targets", "targets.npy")


def test_a_folder_of_several_kinds(files):
    save_numbers("x", ["train-0", "train-1", "test-0", "test-1"])
    line = refused("x", "targets.npy")
    assert "several kinds" in line and "x/test-*.npy" in line and "quoted pattern" in line
    Path("y").mkdir()
    np.save("y/a.npy", LOGITS)
    np.savez("y/b.npz", LOGITS)
    assert "several kinds" in refused("y", "targets.npy")


def test_folders_and_patterns_without_arrays(files):
    Path("x").mkdir()
    assert "x is a directory without .npy" in refused("x", "targets.npy")
    assert "y*.npy matches no file" in refused("y*.npy", "targets.npy")
    Path("x/m.pt").write_bytes(b"\x80\x02}")
    assert "x/m.pt is a PyTorch file" in refused("x", "targets.npy")
    (Path("x") / "zarr.json").write_text("{}")
    assert "x is a Zarr store" in refused("x", "targets.npy")


def test_a_name_with_marks_of_a_pattern(files):
    Path("logits.npy").rename("logits[1].npy")
    check_plain(score("logits[1].npy", "targets.npy"))


def test_the_output_must_not_be_a_shard(files):
    Path("x").mkdir()
    for number, part in enumerate(PARTS):
        np.save(f"x/{number}.npy", LOGITS[part])
    assert "x/3.npy: it is an input" in refused("x", "targets.npy", "--output", "x/3.npy")


def test_many_shards_are_not_open_at_a_time(files):
    resource = pytest.importorskip("resource")
    Path("x").mkdir()
    for number in range(200):
        np.save(f"x/{number}.npy", LOGITS[number * 5 : number * 5 + 5])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened_now = (
        max(int(name) for name in os.listdir("/proc/self/fd")) if Path("/proc").exists() else 64
    )
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened_now + 60, limits[1]))
    try:
        check_plain(score("x", "targets.npy"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


# ---- c) shards that are missing or don't fit -------------------------------------------------


@pytest.mark.parametrize(
    ("form", "lost", "named"),
    [
        ("part-{:05}.npy", 3, "part-00003.npy"),
        ("part-{}.npy", 5, "part-5.npy"),
        ("part-{:05}-of-00008.npy", 0, "part-00000-of-00008.npy"),
        ("part-{:05}-of-00008.npy", 7, "part-00007-of-00008.npy"),
        ("logits_{:02}.npy", 4, "logits_04.npy"),
    ],
)
@pytest.mark.parametrize("how", ["folder", "pattern", "option"])
def test_a_missing_shard_is_named(files, form, lost, named, how):
    Path("x").mkdir()
    names = []
    for number, part in enumerate(PARTS):
        if number != lost:
            names.append(f"x/{form.format(number)}")
            np.save(names[-1], LOGITS[part])
    arguments = {
        "folder": ["x", "targets.npy"],
        "pattern": ["x/*.npy", "targets.npy"],
        "option": ["--targets", "targets.npy", *(w for n in names for w in ("--logits", n))],
    }
    assert f"x lacks {named} of a sequence" in refused(*arguments[how])


def test_the_first_shards_of_a_folder_are_missing(files):
    Path("x").mkdir()
    for number in (2, 3, 4, 5):
        np.save(f"x/{number}.npy", LOGITS[:10])
    assert "x lacks 1.npy" in refused("x", "targets.npy")
    # A pattern asks for those that it names.
    assert "(40, 7)" in refused("x/*.npy", "targets.npy")


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (LOGITS[:10, :5], "x/5.npy has shape (10, 5), which does not fit (100, 7) of x/0.npy"),
        (LOGITS[:10].astype("f8"), "x/5.npy has dtype float64, and x/0.npy has float32"),
        (LOGITS[:10, :, None], "x/5.npy has shape (10, 7, 1)"),
        (LOGITS[0, 0], "x/5.npy has shape ()"),
    ],
)
def test_a_shard_that_does_not_fit_is_named(files, wrong, text):
    Path("x").mkdir()
    for number, part in enumerate(PARTS):
        np.save(f"x/{number}.npy", wrong if number == 5 else LOGITS[part])
    assert text in refused("x", "targets.npy")


def test_a_damaged_shard_is_named(files):
    Path("x").mkdir()
    for number, part in enumerate(PARTS):
        np.save(f"x/{number}.npy", LOGITS[part])
    data = Path("x/6.npy").read_bytes()
    Path("x/6.npy").write_bytes(data[:-4])
    assert "x/6.npy is cut off" in refused("x", "targets.npy")


@pytest.mark.parametrize("what", ["rewritten", "longer", "gone", "cut off"])
def test_a_shard_that_changes_while_others_are_read(files, what):
    Path("x").mkdir()
    for number, part in enumerate(PARTS):
        np.save(f"x/{number}.npy", LOGITS[part])
    request = Request("logits", "--logits-name", None, inputs.LOGITS)
    sources = [open_input([Path(name)], request) for name in ("x", "targets.npy")]
    job = scorer.plan(*sources, scorer.Options())
    path = Path("x/6.npy")
    if what == "gone":
        path.unlink()
    elif what == "cut off":
        os.truncate(path, 200)
    else:
        rows = LOGITS[PARTS[6]]
        np.save(path, rows * 2 if what == "rewritten" else np.concatenate([rows, rows]))
        os.utime(path, ns=(1, 1))
    with pytest.raises(InputError, match=r"x/6\.npy( changed while|: No such)"):
        list(job.blocks(lambda scores: None))
    for source in sources:
        source.close()


def test_a_shard_that_is_cut_off_while_it_is_read(files):
    Path("x").mkdir()
    for number, part in enumerate(PARTS):
        np.save(f"x/{number}.npy", LOGITS[part])
    request = Request("logits", "--logits-name", None, inputs.LOGITS)
    source = open_input([Path("x")], request)
    piece = source.read(50)
    os.truncate("x/0.npy", 200)
    with pytest.raises(InputError, match=r"x/0\.npy was cut off"):
        piece.load()
    source.close()


# ---- d) .csv ---------------------------------------------------------------------------------


def lines(names: str, logits=LOGITS, mark=",") -> str:
    rows = [mark.join(map(repr, row)) for row in logits.tolist()]
    return "\n".join([*filter(None, [names]), *rows]) + "\n"


@pytest.mark.parametrize(
    "names",
    [
        ",".join(f"logits_{c}" for c in range(CLASSES)),
        ",".join(f"class.{c}" for c in range(1, CLASSES + 1)),
        ",".join(map(str, range(CLASSES))),
        "cat,dog,cow,bird,fish,ant,bee",
        "",
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_column_for_each_class(files, names, end):
    Path("logits.csv").write_bytes(lines(names).replace("\n", end).encode("utf-8-sig"))
    Path("targets.csv").write_text(
        "id,label\n" + "".join(f"{i},{t}\n" for i, t in enumerate(TARGET))
    )
    check_plain(score("logits.csv", "targets.npy"))
    check_plain(score("logits.csv", "targets.csv"))
    check_plain(score("logits.npy", "targets.csv", "--targets-name", "label"))


@pytest.mark.parametrize("mark", ["\t", ";"])
def test_other_marks_between_cells(files, mark):
    Path("logits.tsv").write_text(lines(mark.join("abcdefg"), mark=mark))
    check_plain(score("logits.tsv", "targets.npy"))


def test_columns_by_their_names(files):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(LOGITS, columns=[*"abcdefg"]).assign(label=TARGET)
    frame["text"] = 'of "several"\nlines, here'
    frame.to_csv("all.csv")
    line = refused("all.csv")
    assert "'a', 'b'" in line and "--logits-name A,B,C" in line
    check_plain(score("all.csv", "--logits-name", "a,b,c,d,e,f,g"))
    frame[["a", "b", "c", "d", "e", "f", "g"]].to_csv("logits.csv")
    check_plain(score("logits.csv", "targets.npy"))
    assert "no 'z'" in refused("all.csv", "--targets-name", "z", "--logits-name", "a,b,c,d,e,f,g")


def test_a_column_of_numbers_alone(files):
    Path("targets.csv").write_text("\n".join(map(str, TARGET)))
    check_plain(score("logits.npy", "targets.csv"))


def test_columns_for_each_class_of_a_table(files):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    columns = {f"logits_{c}": LOGITS[:, c] for c in range(CLASSES)}
    table = pa.table({"id": np.arange(SAMPLES), **columns, "targets": TARGET})
    pq.write_table(table, "x.parquet")
    check_plain(score("x.parquet"))
    write_ipc(Path("x.arrow"), table, stream=False)
    check_plain(score("x.arrow"))
    # The order is that of the numbers and names, not that of the columns.
    pq.write_table(table.select(table.column_names[::-1]), "turned.parquet")
    check_plain(score("turned.parquet"))
    renamed = table.rename_columns(["id", *"abcdefg", "targets"])
    pq.write_table(renamed.select(["g", *"abcdef", "targets"]), "named.parquet")
    check_plain(score("named.parquet", "--logits-name", "a,b,c,d,e,f,g"))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("a,b\n1,2\n3\n", "bad.csv has 1 cells in line 3, the first has 2"),
        ("a,b\n1,2\n3,x\n", "bad.csv has 'x' in line 3, expected a number"),
        ("a,b\n1,2\n3,\n", "bad.csv has '' in line 3, expected a number"),
        ("\n\n", "bad.csv has no rows"),
        ("a,b\n", "bad.csv has no rows"),
        ("a,b\n1,\xff\n", "bad.csv is not UTF-8 at byte 6"),
        ('a,b\n1,"2\n', "bad.csv"),
        ("a,b\n" + "1" * (2 << 20), "bad.csv has a line of more than"),
    ],
)
def test_a_damaged_csv(files, content, text):
    Path("bad.csv").write_bytes(content.encode("latin-1"))
    np.save("targets.npy", [0, 1])
    assert text in refused("bad.csv", "targets.npy")


def test_a_csv_that_changes_between_its_two_readings(files):
    Path("logits.csv").write_text(lines("cat,dog,cow,bird,fish,ant,bee"))
    request = Request("logits", "--logits-name", None, inputs.LOGITS, classes=True)
    source = open_input([Path("logits.csv")], request)
    os.truncate("logits.csv", 5000)
    with pytest.raises(InputError, match=r"logits\.csv"):
        source.read_all()
    source.close()


# ---- e) tokens -------------------------------------------------------------------------------

LENGTH = 40
TOKENS = np.abs(TARGET).reshape(-1, LENGTH) % CLASSES
PADDED = np.where(np.arange(LENGTH) < 25 + np.arange(len(TOKENS))[:, None] % 17, TOKENS, -100)
TOKEN_LOGITS = LOGITS.reshape(-1, LENGTH, CLASSES)


def check_tokens(report: dict, shift: int) -> None:
    logits, target = TOKEN_LOGITS, PADDED
    if shift:
        logits, target = logits[:, :-shift], target[:, shift:]
    reference = oracle.cross_entropy(np.moveaxis(logits, -1, 1), target)
    kept = target != -100
    check(report, reference, float((logits.argmax(-1) == target)[kept].mean()))
    assert (report["samples"], report["ignored"]) == (target.size, (~kept).sum())
    assert report["settings"]["axis"] == 2


@pytest.mark.parametrize("shift", [0, 1, 3])
@pytest.mark.parametrize("order", ["C", "F"])
def test_tokens(files, shift, order):
    """The class axis is the one that the targets lack."""
    np.save("logits.npy", np.asarray(TOKEN_LOGITS, order=order))
    np.save("targets.npy", PADDED)
    check_tokens(score("logits.npy", "targets.npy", "--shift", shift), shift)


@pytest.mark.parametrize("shift", [0, 1])
def test_output_names_the_place_of_each_token(files, shift):
    np.save("logits.npy", TOKEN_LOGITS)
    np.save("targets.npy", PADDED)
    report = score("logits.npy", "targets.npy", "--shift", shift, "--output", "out.npy")
    out = np.load("out.npy")
    assert len(out) == report["samples"] == PADDED[:, shift:].size
    places = PADDED.shape
    np.testing.assert_array_equal(
        np.ravel_multi_index((out["index_0"], out["index_1"]), places), out["sample"]
    )
    np.testing.assert_array_equal(PADDED[out["index_0"], out["index_1"]], out["target"])
    log_probs = oracle.log_softmax(TOKEN_LOGITS)
    at = TOKEN_LOGITS[out["index_0"], out["index_1"] - shift]
    assert out["predicted"].tolist() == at.argmax(-1).tolist()
    kept = out["target"] >= 0
    expected = log_probs[out["index_0"], out["index_1"] - shift]
    np.testing.assert_allclose(
        out["log_prob"][kept],
        np.take_along_axis(expected, np.maximum(out["target"], 0)[:, None], 1)[kept, 0],
        rtol=1e-5,
    )
    np.testing.assert_allclose(out["confidence"], np.exp(expected.max(-1)), rtol=1e-5)
    np.testing.assert_allclose(out["entropy"], -(np.exp(expected) * expected).sum(-1), rtol=1e-5)
    hard = report["hardest"][0]["sample"]
    assert out["loss"][np.flatnonzero(out["sample"] == hard)[0]] == out["loss"].max()


def test_one_long_text(files):
    """Logits (T, V): the last has no token to predict."""
    report = score("logits.npy", "targets.npy", "--shift", 1, "--output", "out.npy")
    kept = TARGET[1:] != -100
    check(
        report,
        oracle.cross_entropy(LOGITS[:-1], TARGET[1:]),
        float((LOGITS[:-1].argmax(1) == TARGET[1:])[kept].mean()),
    )
    assert np.load("out.npy")["sample"].tolist() == list(range(1, SAMPLES))


def test_shifted_weights_and_groups_go_with_the_targets(files):
    weight = np.linspace(0.1, 3, PADDED.size).reshape(PADDED.shape)
    np.save("logits.npy", TOKEN_LOGITS)
    np.save("targets.npy", PADDED)
    np.save("weight.npy", weight)
    np.save("groups.npy", np.arange(PADDED.size).reshape(PADDED.shape) % LENGTH)
    report = score(
        *("logits.npy", "targets.npy", "--shift", 1, "--sample-weight", "weight.npy"),
        *("--group-by", "groups.npy"),
    )
    reference = oracle.cross_entropy(
        np.moveaxis(TOKEN_LOGITS[:, :-1], -1, 1), PADDED[:, 1:], sample_weight=weight[:, 1:]
    )
    assert report["mean_loss"] == pytest.approx(float(reference.loss("mean")), rel=1e-6)
    assert [group["group"] for group in report["groups"]] == list(range(1, LENGTH))
    counts = (PADDED[:, 1:] != -100).sum(axis=0)
    assert [group["samples"] for group in report["groups"]] == counts.tolist()


def test_wrong_shifts(files):
    np.save("logits.npy", TOKEN_LOGITS)
    np.save("targets.npy", PADDED)
    for shift in (-1, LENGTH):
        assert f"less than the {LENGTH} tokens" in refused(
            "logits.npy", "targets.npy", f"--shift={shift}"
        )
    assert "--loss bce-with-logits has no --shift" in refused(
        *("logits.npy", "targets.npy", "--shift", 1, "--loss", "bce-with-logits")
    )


def test_a_wrong_token_is_named_by_its_place(files):
    wrong = PADDED.copy()
    wrong[7, 20] = 99
    np.save("logits.npy", TOKEN_LOGITS)
    np.save("targets.npy", wrong)
    for shift in (0, 1):
        line = refused("logits.npy", "targets.npy", "--shift", shift)
        assert "class index 99 at position (7, 20)" in line


# ---- f) files of other kinds -----------------------------------------------------------------


def torch_zip() -> bytes:
    path = Path("made.zip")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
        archive.writestr("archive/data/0", bytes(100))
    data = path.read_bytes()
    path.unlink()
    return data


OTHERS = {
    "x.pt": (torch_zip, "is a PyTorch file, which may hold any code and is never loaded"),
    "old.pt": (lambda: pickle.dumps(1, 2), "is a PyTorch file"),
    "x.pkl": (lambda: pickle.dumps([1.0]), "is a pickle"),
    "unnamed": (lambda: pickle.dumps([1.0]), "is a pickle"),
    "x.h5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(100), "is an HDF5 file"),
    "x.npy.gz": (lambda: gzip.compress(b"1"), "is packed with gzip: unpack it"),
    "x.mat": (lambda: b"MATLAB 5.0 MAT-file", "is a MATLAB file"),
    "x.gguf": (lambda: b"GGUF\x03\0\0\0", "is a GGUF model"),
    "x.jsonl": (lambda: b'{"logits": [1]}\n', "is JSON"),
    "x.txt": (lambda: b"1 2 3\n", "is text"),
    "x.bin": (lambda: bytes(100), "is raw bytes or a PyTorch file"),
    "x.avro": (lambda: b"Obj\x01", "is an Avro file"),
}


@pytest.mark.parametrize(("name", "other"), OTHERS.items(), ids=OTHERS)
def test_other_kinds_are_named(files, name, other):
    content, text = other
    Path(name).write_bytes(content())
    line = refused(name, "targets.npy")
    assert f"{name} {text}" in line
    assert text.partition(" ")[0] in run("logits.npy", name).stderr
