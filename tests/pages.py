"""Code of README and docs, and a shell that runs its commands in this process, with few steps."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from gafx.cli import main, read_command

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
# What makes a training cheap, whatever the recipe.
TINY = [
    "max_steps=2", "batch_size=8", "data.segment_seconds=0.8", "workers=0", "precision=fp32",
]  # fmt: skip


def pages() -> list[Path]:
    return [README, *(page for page in sorted((ROOT / "docs").rglob("*.md")) if "examples" not in page.parts)]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


def commands(code: str) -> Iterator[str]:
    """The commands of a block, without comments."""
    for line in code.replace("\\\n", " ").splitlines():
        command = re.sub(r"(^|\s)#.*", "", line).strip()
        if command:
            yield command


def run_python(code: str, page: Path) -> dict:
    scope: dict = {}
    exec(compile(code, name(page), "exec"), scope)
    return scope


class Shell:
    """Runs `python train.py ...`, `python evaluate.py ...` and `gafx ...` as functions; supports `x=$(...)` and `$x`.

    Trainings get `TINY` appended, evaluations few resamples; demo and service are not started, only their arguments are
    parsed.
    """

    def __init__(self, capsys):
        self.capsys, self.variables = capsys, {}

    def run(self, line: str) -> str:
        """Standard output of the command."""
        assigned = re.fullmatch(r"(\w+)=\$\((.*)\)", line)
        if assigned:
            self.variables[assigned[1]] = self.run(assigned[2]).strip().splitlines()[-1]
            return ""
        command = shlex.split(re.sub(r"\$(\w+)", lambda found: self.variables[found[1]], line))
        self.capsys.readouterr()
        more = {"train": TINY, "evaluate": ["resamples=20", "workers=0", "pictures=1"]}
        if command[:1] == ["python"]:
            command[:2] = ["gafx", command[1].removesuffix(".py")]
        if command[0] == "gafx" and command[1] in more:
            main([*command[1:], *more[command[1]]])
        elif command[0] == "gafx":
            parsed = read_command(command[1:])
            if command[1] not in ("demo", "serve"):
                parsed.run(parsed)
        else:
            assert command[0] == "source", line
        return self.capsys.readouterr().out
