"""The version, which `pyproject.toml` reads from here as well."""

__version__ = "0.1.0"
