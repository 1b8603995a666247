"""What `make bench-cpu` prints and draws, from the record that it keeps as JSON."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]
LARGEST_OPERATIONS = 5
ONNX = "ONNX Runtime fp32"


def text(record: Record) -> str:
    parts = (forwards(record), beyond(record), ratios(record), threads(record), profile(record), processes(record))
    facts = ", ".join(f"{name} {value}" for name, value in record["facts"].items())
    return "\n\n".join([part for part in parts if part] + [f"{_floor(record['floor'])}\n{facts}"])


def _floor(floor: Record) -> str:
    rates = ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in floor["flop"].items())
    read, copied = floor["read"] / 1e9, floor["copied"] / 1e9
    return f"matrix products: {rates}; memory: {read:.0f} GB/s read, {copied:.0f} GB/s copied"


def _within(record: Record, row: Record) -> bool:
    return row["error"] <= record["errors"][row["precision"]]


def _grid(heading: Iterable[str], lines: Iterable[Iterable[object]]) -> str:
    cells = [[str(cell) for cell in line] for line in (heading, *lines)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join(
        "  ".join(cell.rjust(width) if number else cell.ljust(width) for number, (cell, width) in pairs).rstrip()
        for pairs in (enumerate(zip(line, widths)) for line in cells)
    )


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


# ---- the table of a forward
def forwards(record: Record) -> str:
    """ms of one network call, batch by batch, and the floor; what is beyond the error of its class is not in it."""
    rows = [row for row in record["rows"] if row["steps"] == 1 and _within(record, row)]
    return "ms a forward, by batch; error: the largest of a prediction\n" + _forwards(record, rows, floors=True)


def beyond(record: Record) -> str:
    """Runtimes whose error is beyond their class, which are timed but are nobody's measure."""
    rows = [row for row in record["rows"] if row["steps"] == 1 and not _within(record, row)]
    if not rows:
        return ""
    limits = ", ".join(f"{name} {limit:.1e}" for name, limit in record["errors"].items())
    return f"left out of the table, their error is beyond that of their class ({limits})\n" + _forwards(
        record, rows, floors=False
    )


def _forwards(record: Record, rows: list[Any], floors: bool) -> str:
    batches = list(dict.fromkeys(row["batch"] for row in record["rows"]))
    networks = record["networks"]
    heading = [
        f"batches {', '.join(map(str, batches))}",
        *(f"{name}, {about['gflop']:.3g} GFLOP" for name, about in networks.items()),
        "error",
    ]
    lines = []
    if floors:
        for precision in record["errors"]:
            cells = [
                " / ".join(_number(ms) for ms in about["floor_ms"][precision].values()) for about in networks.values()
            ]
            lines.append([f"direct floor {precision}", *cells, ""])
    clock = record["facts"]["clock"]
    for variant in dict.fromkeys(row["variant"] for row in rows if row["threads"] == record["facts"]["threads"]):
        mine = {(row["network"], row["batch"]): row for row in rows if row["variant"] == variant}
        cells = [
            " / ".join(_number(mine[name, batch][clock]) if (name, batch) in mine else "-" for batch in batches)
            for name in networks
        ]
        lines.append([variant, *cells, f"{max(row['error'] for row in mine.values()):.1e}"])
    return _grid(heading, lines)


# ---- ratios
def ratios(record: Record) -> str:
    """Every case beside the fastest peer of its class, the fastest whatever its error, and ONNX Runtime in float32."""
    clock, lines = record["facts"]["clock"], []
    times = {_case(row): row for row in record["rows"]}
    for found in record["ratios"]:
        if found["threads"] != record["facts"]["threads"]:
            continue
        row, over = times[_case(found)], found["over"]
        floors = record["networks"][row["network"]]["floor_ms"][row["precision"]]
        floor = next(ms for batch, ms in floors.items() if int(batch) == row["batch"]) * row["steps"]
        peers = (found["best_peer"], found["fastest_peer"], ONNX)
        cells = [f"{over[name]:.2f}x {name}" if name in over else "-" for name in peers]
        head = f"{row['network']}, {row['variant']}, batch {row['batch']}"
        lines.append([head, row["steps"], f"{row[clock]:.3f}", f"{row[clock] / floor:.2f}", *cells])
    heading = ["", "steps", "ms", "ms / floor", "over the best peer of its class", "whatever its error", "in float32"]
    return f"ours, medians over rounds\n{_grid(heading, lines)}" if lines else ""


def _case(row: Record) -> tuple[object, ...]:
    return tuple(row[name] for name in ("network", "batch", "steps", "variant"))


def threads(record: Record) -> str:
    lines = [
        [f"{found['network']}, {found['variant']}, batch {found['batch']}", found["steps"], f"{over:.2f}x"]
        for found in record["ratios"]
        for other, over in found["over"].items()
        if found["variant"] == f"{other}, 2 threads"
    ]
    return "one thread over two, wall time\n" + _grid(["", "steps", "ratio"], lines) if lines else ""


# ---- where time and memory go
def profile(record: Record) -> str:
    lines = []
    for found in record["profiles"]:
        total = sum(operation["ms"] for operation in found["by_operation"])
        kinds: Counter[str] = Counter()
        for operation in found["by_operation"]:
            kinds[f"{operation['kind']} {operation['algorithm']}".strip()] += operation["ms"]
        largest = sorted(found["by_operation"], key=lambda operation: -operation["ms"])[:LARGEST_OPERATIONS]
        lines.append(
            f"{found['network']}, {found['variant']}, batch {found['batch']}: "
            + ", ".join(f"{kind} {ms / total:.0%}" for kind, ms in kinds.most_common())
            + "; most: "
            + ", ".join(f"{operation['name']} {operation['ms'] / total:.1%}" for operation in largest)
        )
    return "\n".join(["where the time goes", *lines]) if lines else ""


def processes(record: Record) -> str:
    lines = [
        [
            f"{found['network']}, {found['variant']}, batch {found['batch']}",
            *(f"{found[name]:.0f}" for name in ("memory_mb", "import_mb")),
            *(f"{found[name]:.3f}" for name in ("process_s", "import_s", "load_s", "first_s")),
            f"{found['hash_s']:.3f}" if "hash_s" in found else "",
        ]
        for found in record["processes"]
    ]
    heading = ["", "memory MB", "import MB", "process s", "import s", "load s", "first call s", "hash s"]
    return "alone in a process; memory: the peak above that of the import\n" + _grid(heading, lines) if lines else ""


# ---- the picture
def plot(record: Record, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    clock, count = record["facts"]["clock"], record["facts"]["threads"]
    rows = [row for row in record["rows"] if row["steps"] == 1 and row["threads"] == count]
    batches = list(dict.fromkeys(row["batch"] for row in rows))
    networks = record["networks"]
    colours = {precision: f"C{number}" for number, precision in enumerate(record["errors"])}
    figure, all_axes = pyplot.subplots(
        len(batches), len(networks), figsize=(5 * len(networks), 4 * len(batches)), squeeze=False
    )
    for axes_of_batch, batch in zip(all_axes, batches):
        for axes, (name, about) in zip(axes_of_batch, networks.items()):
            mine = [row for row in rows if (row["network"], row["batch"]) == (name, batch)]
            mine.sort(key=lambda row: -row[clock])
            for row in mine:
                hatch = None if _within(record, row) else "//"
                label = row["variant"] + ("" if _within(record, row) else f" (error {row['error']:.0e})")
                axes.barh(label, row[clock], color=colours[row["precision"]], hatch=hatch, alpha=0.9)
            for precision, colour in colours.items():
                floor = next(ms for size, ms in about["floor_ms"][precision].items() if int(size) == batch)
                axes.axvline(floor, color=colour, linestyle=":", label=f"direct floor {precision}")
            axes.set(title=f"{name}, batch {batch}", xlabel="ms a forward")
            axes.tick_params(axis="y", labelsize=7)
    all_axes[0][0].legend(fontsize=7)
    figure.suptitle(", ".join(f"{name} {value}" for name, value in record["facts"].items()), fontsize=7, wrap=True)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
