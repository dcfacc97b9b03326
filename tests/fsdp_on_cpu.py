"""train.py with FSDP2 on CPU processes, which Accelerate refuses and torch can do: for tests alone.

Accelerate decides at its start what processes on a CPU may be; here that is overridden right after. Everything that
follows (wrapping, gathering, saving, resuming) is the code that runs on GPUs.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import accelerate
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from gafx.cli import main
from gafx.training import distributed


class Accelerator(accelerate.Accelerator):
    def __init__(self, *, fsdp_plugin=None, **arguments):
        super().__init__(fsdp_plugin=fsdp_plugin, **arguments)
        if fsdp_plugin is not None:
            for state in (AcceleratorState, PartialState):
                state._shared_state["distributed_type"] = DistributedType.FSDP
            AcceleratorState._shared_state["fsdp_plugin"] = fsdp_plugin


if __name__ == "__main__":
    distributed.Accelerator = Accelerator
    main(["train", *sys.argv[1:]])
