"""Label files on a Ray cluster: python ray_label.py albums labels --model outputs/RUN --actors 16

Ray Data distributes the paths; each actor loads the model once and labels a block of files at a time. The output is a
folder of Parquet files with `file` and `entry`, the JSON object that `gafx predict --json` writes. All machines need
gafx, the files and the model under the same paths. Needs `pip install gafx 'ray[data]'`.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import ray

from gafx.deploy.files import find_files


class Labeller:
    """One actor: a loaded model."""

    def __init__(self, model: str, device: str):
        from gafx.deploy.predict import probabilities

        self.model, self.device = probabilities(model), device

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        """Label a block of files; one that cannot be read has an `error` in its entry."""
        import gafx

        found = list(gafx.predict(list(map(str, batch["file"])), self.model, device=self.device))
        return {
            "file": [answer.file for answer in found],
            "entry": [json.dumps(answer.to_dict(over_time=False), ensure_ascii=False) for answer in found],
        }


def main() -> None:
    """Label the files of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", help="a file, a folder or a glob pattern")
    parser.add_argument("out", type=Path, help="folder of the Parquet files; must not exist")
    parser.add_argument("--model", required=True)
    parser.add_argument("--actors", type=int, default=1, help="models loaded at the same time")
    parser.add_argument("--gpus", type=float, default=0, help="of each actor")
    parser.add_argument("--files-per-batch", type=int, default=64)
    given = parser.parse_args()
    if given.out.exists():
        parser.error(f"{given.out} exists: name a new folder")
    paths = [str(Path(file).absolute()) for file in find_files([given.files]).files]
    ray.init(ignore_reinit_error=True)
    labelled = ray.data.from_items([{"file": path} for path in paths]).map_batches(
        Labeller,
        fn_constructor_args=(given.model, "cuda" if given.gpus else "cpu"),
        batch_size=given.files_per_batch,
        compute=ray.data.ActorPoolStrategy(size=given.actors),
        num_gpus=given.gpus,
    )
    labelled.write_parquet(str(given.out.absolute()))
    print(f"{len(paths):,} files: {given.out}")


if __name__ == "__main__":
    main()
