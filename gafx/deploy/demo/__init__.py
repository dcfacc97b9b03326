"""Web page to try a model: upload or record audio, see label probabilities, also over time, and the front-end's map.

Everything stays on the machine: the page loads nothing from other servers, uploads are kept in a private folder and
deleted once they are answered, and figures are embedded in the answer.
"""

from gafx.deploy.demo.page import Page
from gafx.deploy.demo.server import build, opened, private_folder, serve

__all__ = ["Page", "build", "opened", "private_folder", "serve"]
