"""A page to try a model: drop a file or record, see its labels, their shares over time, and the map that was read.

Everything stays on the machine: the page loads nothing from elsewhere, uploads lie in a private folder and are deleted
when they are answered, and pictures travel inside the answer.
"""

from gafx.deploy.demo.answers import MAX_BYTES, MAX_SECONDS, Page
from gafx.deploy.demo.server import build, opened, private_folder, serve, warn_of_host

__all__ = ["MAX_BYTES", "MAX_SECONDS", "Page", "build", "opened", "private_folder", "serve", "warn_of_host"]
