"""Builds the wheel with configs/ inside, as gafx/configs: one copy of the files, which a clone reads in place."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

CONFIGS = Path("configs")


class BuildWithConfigs(build_py):
    """`build_py` that copies configs/ into the package; an editable install reads the clone's files instead."""

    def run(self) -> None:
        """Build the package, then copy the configurations."""
        super().run()
        if not self.editable_mode:
            shutil.copytree(CONFIGS, Path(self.build_lib, "gafx", "configs"), dirs_exist_ok=True)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Paths of the files that are built."""
        copied = [str(Path(self.build_lib, "gafx", path)) for path in CONFIGS.rglob("*") if path.is_file()]
        return super().get_outputs(include_bytecode) + ([] if self.editable_mode else copied)


setup(cmdclass={"build_py": BuildWithConfigs})
