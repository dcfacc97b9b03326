"""The page of the Space: gafx's demo of the model that the variable GAFX_MODEL names."""

import os

import gafx
from gafx.deploy import demo

MODEL = os.environ.get("GAFX_MODEL", "audioset-crnn")
MAX_BYTES = 20_000_000

blocks = demo.build(gafx.load(MODEL), name=os.path.basename(MODEL), max_bytes=MAX_BYTES, max_seconds=300)

if __name__ == "__main__":
    blocks.launch(max_file_size=MAX_BYTES)
