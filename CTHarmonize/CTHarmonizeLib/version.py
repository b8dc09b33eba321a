"""The version of the distribution, the extension and the reports."""

__version__ = "0.1.0"
