"""Kotae (答え): an async AI answer backend with an exact account of every answer."""

__version__ = "0.1.0"
