"""Web service that labels uploads: the answers of `gafx predict --json` over HTTP, in memory of bounded size.

Uploads go to a private folder and are deleted once they are answered. One thread computes, one
file after the other. What exceeds a limit is refused with a sentence, and what there is no room for with status 503.
"""

from gafx.deploy.serve.server import check_packages, opened, serve

__all__ = ["check_packages", "opened", "serve"]
