"""The version of this package: here, so that every room can say it."""

__version__ = "0.1.0"
