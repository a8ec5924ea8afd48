"""What the bench scripts share: machine description, interleaved timing, JSON and chart style.

``pin`` limits the process to a number of processors, ``measure`` times competitors in interleaved
rounds, ``machine`` describes where that happened, ``save`` and ``load`` keep it as JSON. Nothing
here knows a loss; those are in ``peers.py``.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import io
import itertools
import json
import math
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

RESULTS = Path(__file__).parent / "results"
console = Console(width=None if Console().is_terminal else 150)

# A loss and the shape of its input.
Cell = tuple[str, tuple[int, ...]]

PACKAGES = (
    "fastloss", "numpy", "scipy", "scikit-learn", "torch", "jax", "jaxlib", "optax",
    "onnxruntime", "numba", "numexpr",
)  # fmt: skip

# One colour a library in every chart: fastloss stands out, the others are told apart by name.
ACCENT = "#d1495b"
MUTED = "#9aa5b1"
INK = "#22303c"


@dataclass(frozen=True)
class Timing:
    """Seconds per call over the rounds: the median and the quartiles around it."""

    median: float
    q1: float
    q3: float
    rounds: int
    calls_per_round: int

    @property
    def spread(self) -> float:
        """Interquartile range over the median."""
        return (self.q3 - self.q1) / self.median


def summarise(samples: list[float], calls_per_round: int) -> Timing:
    """Median and quartiles of seconds per call."""
    if len(samples) > 1:
        q1, _, q3 = statistics.quantiles(samples, n=4, method="inclusive")
    else:
        q1 = q3 = samples[0]
    return Timing(statistics.median(samples), q1, q3, len(samples), calls_per_round)


def measure(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    budget: float,
    sample: float = 0.002,
    before: Callable[[str], object] = lambda name: None,
    advance: Callable[[float], None] = lambda share: None,
) -> dict[str, Timing]:
    """Time every call in the same rounds, so that a slow minute of the machine hits all alike.

    Parameters
    ----------
    calls : mapping of name to function
        The competitors; what a function returns is dropped inside the timed section.
    rounds : int
        Rounds at most.
    budget : float
        Seconds after which no further round starts, three rounds at least excepted.
    sample : float
        A call shorter than this is repeated until a sample takes that many seconds.
    before : callable
        Called with a competitor's name before each of its samples, not timed.
    advance : callable
        Told, after each competitor of each round, the share of the work that it was.

    Returns
    -------
    dict of str to Timing
    """
    repeats: dict[str, int] = {}
    for name, call in calls.items():
        before(name)
        call()  # compiles, faults pages in, fills caches
        started = time.perf_counter()
        call()
        once = time.perf_counter() - started
        repeats[name] = max(1, math.ceil(sample / max(once, 1e-7)))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    share = 1 / (rounds * max(len(names), 1))
    gc.collect()
    gc.disable()
    try:
        deadline = time.perf_counter() + budget
        for number in range(rounds):
            if number >= 3 and time.perf_counter() > deadline:
                advance(share * len(names) * (rounds - number))
                break
            # The order turns, so that nobody always follows the same competitor.
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                call, repeat = calls[name], repeats[name]
                before(name)
                started = time.perf_counter()
                for _ in itertools.repeat(None, repeat):
                    call()
                samples[name].append((time.perf_counter() - started) / repeat)
                advance(share)
    finally:
        gc.enable()
    return {name: summarise(samples[name], repeats[name]) for name in names}


def pin(threads: int) -> None:
    """Limit this process to ``threads`` processors, before any library starts its threads.

    Every competitor then has the same processors, XLA included, which takes its number of threads
    from the affinity. The last processors are used: the first one takes most interrupts.
    """
    if not hasattr(os, "sched_setaffinity"):
        if threads == 1:
            console.print("[yellow]no processor affinity here: XLA may use more threads[/]")
        return
    available = sorted(os.sched_getaffinity(0))
    if threads > len(available):
        raise SystemExit(f"--threads {threads}: only {len(available)} processors are available")
    os.sched_setaffinity(0, available[-threads:])


def version(package: str) -> str | None:
    """Version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def installed() -> dict[str, str]:
    """Versions of the libraries that are compared."""
    return {name: found for name in PACKAGES if (found := version(name))}


def fastloss_config() -> str:
    """What ``fastloss.show_config`` says, without paths."""
    try:
        import fastloss
    except ImportError:
        return ""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        fastloss.show_config()
    return re.sub(r"\S*/\S*/(\S+)", r"\1", said.getvalue()).strip()


def active_level() -> str:
    """The instruction-set level that fastloss uses here."""
    try:
        from fastloss import _kernels
    except ImportError:
        return "none"
    return str(_kernels.level)


def _read(path: str) -> str:
    """The file's text, nothing where there is none."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _first_match(path: str, pattern: str) -> str | None:
    match = re.search(pattern, _read(path), re.MULTILINE)
    return match.group(1).strip() if match else None


def processor() -> dict[str, str]:
    """Vendor, family and model of the processor, as far as the system says, and its name."""
    text = _read("/proc/cpuinfo")
    fields = {
        "name": "model name",
        "vendor": "vendor_id|CPU implementer",
        "family": "cpu family|CPU architecture",
        "model": "model|CPU part",
    }
    found = {
        key: match.group(1).strip()
        for key, label in fields.items()
        if (match := re.search(rf"^(?:{label})\s*:(.*)$", text, re.MULTILINE))
    }
    return {"name": platform.processor() or platform.machine(), **found}


def processor_key(found: Mapping[str, str] | None = None) -> str:
    """A short name such as ``amd-26-2``, vendor, family and model: results are filed by it."""
    found = processor() if found is None else found
    vendors = {"AuthenticAMD": "amd", "GenuineIntel": "intel", "0x41": "arm"}
    vendor = found.get("vendor", "")
    parts = [vendors.get(vendor, vendor or found["name"])]
    parts += [found[key] for key in ("family", "model") if key in found]
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


def processor_title(found: Mapping[str, str] | None = None) -> str:
    """``AMD EPYC, family 26, model 2``."""
    found = processor() if found is None else found
    more = [f"{key} {found[key]}" for key in ("family", "model") if key in found]
    return ", ".join([found["name"], *more])


def _caches() -> dict[str, str]:
    """Size of each cache that the first processor sees, e.g. ``{"L1d": "48K"}``."""
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (
            (index / name).read_text().strip() for name in ("level", "type", "size")
        )
        if kind != "Instruction":
            found[f"L{level}{'d' if kind == 'Data' else ''}"] = size
    return found


def machine(threads: int) -> dict[str, Any]:
    """Processor, caches, versions, threads and instruction set; neither paths nor host names."""
    memory = _first_match("/proc/meminfo", r"^MemTotal:\s+(\d+)")
    flags = (_first_match("/proc/cpuinfo", r"^flags\s*:(.*)$") or "").split()
    return {
        "cpu": processor()["name"],
        "processor": processor(),
        "architecture": platform.machine(),
        "vector_extensions": [
            flag
            for flag in ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_bf16")
            if flag in flags
        ],
        "cores": os.cpu_count(),
        "caches": _caches(),
        "memory_gib": round(int(memory) / 2**20, 1) if memory else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": installed(),
        "fastloss": fastloss_config(),
        "level": active_level(),
        "threads": threads,
    }


def describe(where: Mapping[str, Any]) -> str:
    """The machine in a line, for a table's caption or a chart's foot."""
    cores = f"{where['threads']} thread{'s' if where['threads'] > 1 else ''}"
    return f"{where['cpu']} ({where['level']}), {cores}, float32 unless said otherwise"


def available_memory() -> int:
    """Bytes that can be allocated without swapping; a lot where the system doesn't say."""
    found = _first_match("/proc/meminfo", r"^MemAvailable:\s+(\d+)")
    return int(found) * 1024 if found else 2**62


def save(path: Path, benchmark: str, where: Mapping[str, Any], **content: Any) -> None:
    """Write one run as JSON; dataclasses become objects."""

    def plain(value: Any) -> Any:
        if isinstance(value, Timing):
            return asdict(value)
        raise TypeError(f"cannot write {type(value).__name__} as JSON")

    path.parent.mkdir(parents=True, exist_ok=True)
    document = json.loads(
        json.dumps({"benchmark": benchmark, "machine": dict(where), **content}, default=plain)
    )
    path.write_text(_compact(_short(document)) + "\n")
    console.print(f"wrote {path.name}")


def _compact(value: Any, depth: int = 0) -> str:
    """JSON with a line for each result, so that a changed number is a changed line."""
    inner, outer = "\n" + " " * (depth + 1), "\n" + " " * depth
    if isinstance(value, dict) and value and depth < 3 and not _is_result(value):
        lines = [
            f"{json.dumps(key, ensure_ascii=False)}: {_compact(item, depth + 1)}"
            for key, item in value.items()
        ]
        return f"{{{inner}{f',{inner}'.join(lines)}{outer}}}"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return f"[{inner}{f',{inner}'.join(_compact(item, 3) for item in value)}{outer}]"
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _is_result(value: dict[str, Any]) -> bool:
    return "median" in value


def _short(value: Any) -> Any:
    """The same with six digits a number: the next run changes more."""
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_short(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def load(path: Path) -> dict[str, Any]:
    """Read what ``save`` wrote."""
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def results(key: str) -> Path:
    """The folder of a processor's results; a processor's own is ``results(processor_key())``."""
    return RESULTS / key


def own(name: str, partial: bool) -> Path:
    """The results file of that name of this processor.

    Raises
    ------
    SystemExit
        If a run of some cells would be joined to results of other versions or threads.
    """
    path = results(processor_key()) / f"{name}.json"
    if partial and path.exists():
        before = load(path)["machine"]
        for what in ("versions", "level"):
            now = {"versions": installed(), "level": active_level()}[what]
            if before[what] != now:
                raise SystemExit(
                    f"{path.parent.name}/{path.name} holds results of {what} {before[what]}, and "
                    f"here are {now}: run all cells, or write to another file with --json"
                )
    return path


def merge(
    path: Path, rows: list[dict[str, Any]], identity: tuple[str, ...]
) -> list[dict[str, Any]]:
    """The rows, and those of the file whose ``identity`` none of them has."""

    def key(row: dict[str, Any]) -> tuple[str, ...]:
        return tuple(json.dumps(row[name]) for name in identity)

    measured = {key(row) for row in rows}
    old = load(path)["results"] if path.exists() else []
    return [row for row in old if key(row) not in measured] + rows


def median(row: Mapping[str, Any]) -> float:
    """Median of a measured or loaded row, in seconds."""
    timing = row["timing"]
    return float(timing["median"] if isinstance(timing, dict) else timing.median)


def medians(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, tuple[int, ...], str, str], float]:
    """``(loss, shape, mode, peer)`` to the median in seconds, from measured or loaded rows."""
    return {
        (row["loss"], tuple(row["shape"]), row["mode"], row["peer"]): median(row) for row in rows
    }


def spreads(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, tuple[int, ...], str, str], float]:
    """``(loss, shape, mode, peer)`` to the interquartile range over the median."""
    found = {}
    for row in rows:
        timing = row["timing"]
        timing = timing if isinstance(timing, Timing) else Timing(**timing)
        found[row["loss"], tuple(row["shape"]), row["mode"], row["peer"]] = timing.spread
    return found


def size_name(shape: Iterable[int]) -> str:
    """``(65536, 128)`` as ``65,536 × 128``."""
    return " × ".join(f"{extent:,}" for extent in shape)


def seconds(value: float) -> str:
    """A time in the unit that reads best, three digits."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def times(ratio: float) -> str:
    """A ratio as ``12×`` or ``3.4×``."""
    return (
        f"{ratio:.0f}×" if ratio >= 9.95 else f"{ratio:.1f}×" if ratio >= 0.95 else f"{ratio:.2f}×"
    )


def geometric_mean(values: Iterable[float]) -> float:
    """Geometric mean of positive numbers."""
    return statistics.geometric_mean(values)


def progress_bar() -> Progress:
    """A progress bar on standard error that is silent where that is no terminal."""
    screen = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        console=screen,
        transient=True,
        disable=not screen.is_terminal,
    )


def pyplot() -> Any:
    """Matplotlib's pyplot without a screen, in the style of all charts here."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": MUTED,
            "axes.labelcolor": INK,
            "axes.titlecolor": INK,
            "text.color": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "figure.facecolor": "white",
            "savefig.dpi": 130,
        }
    )
    return plt
