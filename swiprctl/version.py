"""The version of all that this repository makes. Nothing else, so that reading it costs nothing."""

__version__ = "0.1.0"
