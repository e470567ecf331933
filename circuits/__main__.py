"""`python -m circuits` is the `circuits` command."""

from circuits.cli import app

app()
