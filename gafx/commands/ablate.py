"""`gafx ablate`: train and evaluate every row of a table over its seeds and folds."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gafx.commands.options import add_config_dir, check_least
from gafx.data.protocols import Protocol
from gafx.errors import UsageError
from gafx.io import locked
from gafx.process import print_made

if TYPE_CHECKING:
    from gafx.config import TrainConfig
    from gafx.studies.ablation.plan import Job

_log = logging.getLogger("gafx")
DESCRIPTION = (
    "Train and evaluate every row of a table over its seeds and folds, and write the table as Markdown, CSV and HTML. "
    "Finished runs are skipped, interrupted ones resume, and a row that fails does not stop the others. Overrides are "
    "those of gafx train, for every row (data.root=genres) or for one (table6_gafx_u:batch_size=2). Prints the table "
    "on standard output; the status is 1 if a row has failed."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("table", help="a name (example, table3 ... table7, or DIR/ablation/NAME.yaml), or a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="[row:]key=value", help="of gafx train")
    parser.add_argument("--small", action="store_true", help="use the table's small budget: minutes without a GPU")
    parser.add_argument("--seeds", metavar="N,N", help="seeds (default: the table's)")
    parser.add_argument("--folds", metavar="N,N", help="folds (default: all of the protocol)")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at a time (default: one per GPU; one without)")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="processes per run (torchrun)")
    parser.add_argument("--max-memory", type=float, metavar="GB", help="end a run that uses more main memory")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder of the table (default: <output_dir>/<table>)"
    )
    parser.add_argument("--no-run", action="store_true", help="write the table of the finished runs, and run nothing")
    parser.add_argument("--dry-run", action="store_true", help="list the runs and their state, and exit")
    add_config_dir(parser)


def run(parsed: argparse.Namespace) -> None:
    """Run the table, write it and print it."""
    from gafx.compose import compose_train, config_folders
    from gafx.studies.ablation.drive import Executor, drive, read_outcomes
    from gafx.studies.ablation.plan import plan_table
    from gafx.studies.ablation.spec import find_table, read_table

    _check(parsed)
    table = read_table(find_table(parsed.table, *(each / "ablation" for each in config_folders(parsed.config_dir))))
    folds = _Folds(_numbers(parsed.folds, "--folds"))
    plan = plan_table(
        table, parsed.overrides, lambda overrides: compose_train(overrides, parsed.config_dir), small=parsed.small,
        seeds=_numbers(parsed.seeds, "--seeds"), folds=folds,
    )  # fmt: skip
    plan.folds = folds.wanted
    _check_data(plan.jobs)
    if parsed.dry_run:
        return _list(plan.jobs)
    first = next(job.config for job in plan.jobs if job.config is not None and job.evaluated)
    name = f"{table.name}-{first.data.name}-{first.data.protocol}{'-small' if parsed.small else ''}"
    output = parsed.output or Path(first.output_dir).expanduser() / name
    output.mkdir(parents=True, exist_ok=True)
    busy = f"{output} is being written by another gafx ablate; wait for it, or end it"
    with locked(output / ".lock", busy, wait=False):
        if parsed.no_run:
            outcomes = read_outcomes(output / "logs")
        else:
            slots = _slots(parsed.jobs, parsed.processes, first.device)
            max_memory = round(parsed.max_memory * 1e9) if parsed.max_memory else None
            train = _command("train", parsed)
            # A table is of runs as they are, whatever an evaluate.yaml of the user sets.
            evaluate = [*_command("evaluate", parsed), "views=1", "ensemble=false"]
            executor = Executor(train, evaluate, output / "logs", slots, max_memory)
            _prepare_data(plan.jobs)
            outcomes = drive(plan.jobs, executor)
        from gafx.studies.ablation.collect import collect
        from gafx.studies.ablation.write import write_table

        sheets = collect(plan, outcomes)
        print_made(write_table(plan, sheets, output).rstrip("\n"))
    _log.info("table: %s", output / "table.html")
    if any(line.faults for sheet in sheets for line in sheet.lines):
        sys.exit(1)


class _Folds:
    """Folds that a protocol is run on; the manifest is read where the data set has official folds."""

    def __init__(self, wanted: list[int] | None):
        self.wanted = wanted
        self._official: dict[str, list[int]] = {}

    def __call__(self, config: "TrainConfig") -> Sequence[int | None]:
        data = config.data
        folds = Protocol.parse(data.protocol).folds(data.folds, lambda: self._of_data(data))
        if self.wanted is None:
            return folds or [None]
        if missing := sorted(set(self.wanted) - set(folds)):
            raise UsageError(
                f"--folds {','.join(map(str, missing))}: protocol {data.protocol!r} has "
                + (f"the folds {', '.join(map(str, folds))}" if folds else "no folds")
            )
        return list(self.wanted)

    def _of_data(self, data: Any) -> list[int]:
        from gafx.data.sources.base import load_manifest

        key = f"{data.name} {data.root} {data.options}"
        if key not in self._official:
            manifest = load_manifest(data.name, data.root, download=data.download, **data.options)
            self._official[key] = manifest.official_folds()
        return self._official[key]


def _check_data(jobs: "Sequence[Job]") -> None:
    """Refuse jobs whose folder is of a run on other data: the folder of the data is not part of a run id."""
    from gafx.studies.ablation.plan import data_root, trained_root

    roots: dict[Path, tuple[str | None, str]] = {}
    moved: dict[tuple[str | None, str | None], bool] = {}
    for job in jobs:
        if job.config is None:
            continue
        root = data_root(job.config)
        other, row = roots.setdefault(job.folder, (root, job.row))
        before = trained_root(job.folder)
        if other != root:
            job.error = (
                f"it would be the same run as that of {row}, on other data ({other} and {root}); give it name=..."
            )
        elif before is not None and root is not None and before != root and Path(root).exists():
            if (before, root) not in moved:
                moved[before, root] = _same_data(job)
                if moved[before, root]:
                    _log.info("%s and %s contain the same clips: runs on the first are used", before, root)
            if not moved[before, root]:
                job.error = (
                    f"{job.folder} was trained on other data, under {before}; give another name=... or output_dir"
                )


def _same_data(job: "Job") -> bool:
    """Return whether a run was trained on the clips, labels and groups that its configuration names now."""
    from gafx.config import read_mapping
    from gafx.data.segments import by_segment
    from gafx.data.sources.base import load_manifest

    assert job.config is not None
    data = job.config.data
    manifest = load_manifest(data.name, data.root, **data.options)
    if data.group_by == "segment":
        manifest = by_segment(manifest, data.segment_seconds)
    return manifest.changed_since(read_mapping(job.folder / "run.json", "data")["data"]) is None


def _prepare_data(jobs: "Sequence[Job]") -> None:
    """Synthesize or download missing data once, before the first run; set the error of jobs whose data are unavailable.

    Raises:
        UsageError: no row has its data.
    """
    from gafx.data.sources.base import load_manifest

    failed: dict[str, str] = {}
    for job in jobs:
        if job.config is None or job.error or job.finished():
            continue
        data = job.config.data
        key = f"{data.name} {data.root} {data.options}"
        if key not in failed:
            failed[key] = ""
            if data.root is None or not Path(data.root).expanduser().exists():
                try:
                    load_manifest(data.name, data.root, download=data.download, **data.options)
                except UsageError as error:
                    failed[key] = str(error)
        job.error = failed[key]
    rows = [job for job in jobs if job.evaluated]
    if all(job.error and not job.finished() for job in rows):
        raise UsageError("; ".join(dict.fromkeys(job.error for job in rows)))


def _check(parsed: argparse.Namespace) -> None:
    check_least(parsed, jobs=1, processes=1)
    if parsed.max_memory is not None and parsed.max_memory <= 0:
        raise UsageError(f"--max-memory {parsed.max_memory:g} must be above 0 (GB)")


def _numbers(text: str | None, option: str) -> list[int] | None:
    if text is None:
        return None
    numbers = [number.strip() for number in text.split(",")]
    if not all(number.isdecimal() for number in numbers):
        raise UsageError(f"{option} {text!r} must be whole numbers separated by commas, e.g. {option} 0,1,2")
    return list(dict.fromkeys(map(int, numbers)))


def _command(name: str, parsed: argparse.Namespace) -> list[str]:
    """Command line of `gafx train` or `gafx evaluate` without its overrides, under torchrun for several processes."""
    folder = ["--config-dir", str(parsed.config_dir.resolve())] if parsed.config_dir else []
    launcher = [sys.executable]
    if parsed.processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={parsed.processes}"]
    return [*launcher, "-m", "gafx", name, *folder]


def _slots(jobs: int | None, processes: int, device: str) -> list[dict[str, str]]:
    """Environment of each concurrent run: its own GPUs, or its number of threads."""
    if device in ("auto", "cuda"):
        import torch

        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
        if torch.cuda.is_available():
            groups = [",".join(gpus[i : i + processes]) for i in range(0, len(gpus) - processes + 1, processes)]
            if not groups:
                raise UsageError(f"--processes {processes}, but {len(gpus)} GPUs are visible")
            return [{"CUDA_VISIBLE_DEVICES": groups[i % len(groups)]} for i in range(jobs or len(groups))]
    jobs = jobs or 1
    threads = max(1, (os.cpu_count() or 1) // (jobs * processes))
    slot = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(threads)}
    if processes > 1 and device in ("auto", "cpu"):
        slot["ACCELERATE_USE_CPU"] = "true"
    return [dict(slot) for _ in range(jobs)]


def _list(jobs: "Sequence[Job]") -> None:
    for job in jobs:
        states = [("finished", job.finished), ("trained", job.trained), ("started", job.folder.is_dir)]
        state = next((name for name, holds in states if holds()), "new")
        print(f"{job.key}: {f'refused: {job.error}' if job.error else f'{state}, {job.folder}'}")
