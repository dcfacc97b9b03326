"""The version of gafx: one place, read by the package, the build and every file that gafx writes."""

__version__ = "0.1.0"
