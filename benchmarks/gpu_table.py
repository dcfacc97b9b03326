"""The Markdown table of gpu.py, written from the content of its JSON file alone."""

from collections.abc import Callable
from typing import Any

Column = tuple[str, Callable[[dict[str, Any]], str]]


def table(content: dict[str, Any]) -> str:
    """Head, one table per section, and a list of what was skipped, interrupted or failed, with the reasons."""
    environment, rows = content["environment"], list(content["rows"].values())
    lines = [f"# gafx on {environment['card']}", "", head(environment), ""]
    for section, columns in COLUMNS.items():
        done = [row for row in rows if row["section"] == section and row["status"] == "done"]
        if not done:
            continue
        lines += [f"## {section}", "", *NOTES.get(section, ()), ""]
        lines += ["| " + " | ".join(["", *(name for name, _ in columns)]) + " |", "|---" * (len(columns) + 1) + "|"]
        for row in sorted(done, key=lambda row: row["name"]):
            for label, values in expand(row):
                lines.append("| " + " | ".join([label, *(text(values) for _, text in columns)]) + " |")
        lines += ["", *(f"{row['name']}: {note}" for row in done if (note := row["values"].get("note"))), ""]
    missing = [row for row in rows if row["status"] != "done"]
    if missing:
        groups: dict[tuple[str, str, str], list[str]] = {}
        for row in missing:
            groups.setdefault((row["section"], row["status"], row["reason"]), []).append(row["name"])
        lines += ["## Not measured", "", "| section | rows | | reason |", "|---|---|---|---|"]
        lines += [
            f"| {section} | {cell('; '.join(names))} | {status} | {cell(reason)} |"
            for (section, status, reason), names in groups.items()
        ]
        lines.append("")
    return "\n".join(lines)


def head(environment: dict[str, Any]) -> str:
    """One sentence: card, versions, date, and what counts as the ceiling."""
    memory = f", {environment['memory_gb']:.0f} GB" if environment["memory_gb"] else ""
    cuda = f", CUDA {environment['cuda']}" if environment["cuda"] else ""
    rehearsal = "Rehearsal with tiny models: the figures mean nothing. " if environment["rehearsal"] else ""
    return (
        f"{rehearsal}{environment['card']}{memory}, {environment['processors']} processors, PyTorch "
        f"{environment['torch']}{cuda}, Python {environment['python']}, gafx {environment['gafx']}, "
        f"{environment['date'][:10]}. Budget {environment['budget_seconds']:.0f} s a call. Ceiling: "
        f"{environment['peak_tflops']:g} TFLOP/s."
    )


def expand(row: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Label and values of each line of a row: one, or one per method where several are compared."""
    methods = row["values"].get("methods")
    return [(method["method"], method) for method in methods] if methods else [(row["name"], row["values"])]


def cell(text: str) -> str:
    """Escape text for a cell of a Markdown table."""
    return " ".join(text.replace("|", "\\|").split())


def number(key: str, form: str = ".1f", unit: str = "", factor: int = 1) -> Callable[[dict[str, Any]], str]:
    """A column's text: the value of `key`, or a dash where it is missing or not finite."""

    def text(values: dict[str, Any]) -> str:
        value = values.get(key)
        return "-" if value is None else f"{value * factor:{form}}{unit}"

    return text


def yes_or_no(key: str) -> Callable[[dict[str, Any]], str]:
    return lambda values: "yes" if values[key] else "**no**"


def interval(key: str) -> Callable[[dict[str, Any]], str]:
    """A score in per cent with its 95 % interval."""

    def text(values: dict[str, Any]) -> str:
        score = values.get(key)
        if score is None or score["value"] is None:
            return "-"
        limits = [score.get("low"), score.get("high")]
        known = "" if None in limits else f" ({100 * limits[0]:.1f} to {100 * limits[1]:.1f})"
        return f"{100 * score['value']:.1f} %{known}"

    return text


NOTES = {
    "Throughput": [
        "Training steps of `Trainer` with the loader, from a packed cache; the first steps left out. Counted FLOPs:",
        "three forward passes of what is trained, one of a frozen front-end, none for what checkpointing recomputes.",
    ],
    "Losses": [
        "fp32 without TF32, the same clips in the same order; differences are relative to the CPU's loss. Compiled: on",
        "the device alone.",
    ],
    "Predictions": [
        "Random weights in full size, logits centred and scaled to a std of 1; largest difference of a probability",
        "from the CPU's in fp32. `fp32` is without TF32, `TF32` as PyTorch has it by default (convolutions only).",
    ],
    "GAFX-A in fp16": [
        "Width 64, 1 s crops of synthetic music, 8 a step, Adam; fp16 autocast with loss scaling; the learning rate is",
        "constant after 50 steps of warm-up. `norm=pre` is gafx's, `norm=post` the plain reading of the paper.",
    ],
    "Labelling": [
        "AST-Tiny. Methods interleaved, medians. The pipeline is transformers' for audio classification, on the",
        "windows of overlap 0; `times the pipeline` is windows/s over those of the fastest pipeline in the same",
        "precision. `model alone` computes batches in memory, without reading. Compilation is not in the times.",
    ],
    "ESC-10": ["`experiment=esc10_scratch` (with its CNN) and GAFX-R at full width; 95 % intervals."],
}

COLUMNS: dict[str, list[Column]] = {
    "Throughput": [
        ("clips/s", number("clips_per_second")),
        ("fraction of the ceiling", number("fraction_of_ceiling", ".1f", " %", 100)),
        ("ceiling, clips/s", number("ceiling_clips_per_second", ",.0f")),
        ("GFLOP a clip, training", number("training_gflop_per_clip")),
        ("peak memory", number("peak_memory_gb", ".1f", " GB")),
        ("data wait", number("data_wait_fraction", ".1f", " %", 100)),
    ],
    "Losses": [
        ("steps", number("steps", "d")),
        ("largest difference", number("largest_relative_difference", ".1e")),
        ("tolerance", number("tolerance", ".1e")),
        ("gradient norm, first step", number("first_gradient_norm_difference", ".1e")),
        ("equal", yes_or_no("equal")),
    ],
    "Predictions": [
        ("fp32", number("fp32", ".1e")),
        ("tolerance", number("tolerance", ".1e")),
        ("equal", yes_or_no("equal")),
        ("TF32", number("tf32", ".1e")),
        ("bf16", number("bf16", ".1e")),
        ("fp16", number("fp16", ".1e")),
        ("all finite", yes_or_no("finite")),
        ("largest probability", number("largest_probability", ".2f")),
    ],
    "GAFX-A in fp16": [
        ("precision", lambda values: str(values["precision"])),
        ("steps", number("steps", "d")),
        ("non-finite losses", number("nonfinite_losses", "d")),
        ("steps skipped by loss scaling", number("skipped_steps", "d")),
        ("loss, first tenth", number("first_tenth", ".3f")),
        ("last tenth", number("last_tenth", ".3f")),
        ("last step", number("final_loss", ".3f")),
    ],
    "FSDP2": [("test", lambda values: f"`{values['test']}`"), ("passed", yes_or_no("passed"))],
    "Labelling": [
        ("windows", number("windows", "d")),
        ("seconds", number("seconds", ".2f")),
        ("files/s", number("files_per_second")),
        ("windows/s", number("windows_per_second")),
        ("times real time", number("times_real_time", ".0f")),
        ("times the pipeline", number("times_pipeline", ".2f")),
        ("compilation", number("compile_seconds", ".0f", " s")),
        ("difference to eager", number("difference", ".1e")),
    ],
    "ESC-10": [
        ("test tracks", number("tracks", "d")),
        ("accuracy", interval("accuracy")),
        ("macro-F1", interval("macro_f1")),
        ("steps", number("steps", "d")),
        ("training", number("train_seconds", ".0f", " s")),
        ("clips/s", number("clips_per_second")),
    ],
}
