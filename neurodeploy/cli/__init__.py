"""The command line: one module per verb, imported when the verb is used."""

from neurodeploy.cli._main import main

__all__ = ["main"]
