"""The command that serves pages of a folder to this machine: serve."""

from pathlib import Path
from typing import Annotated

import typer

from circuits.cli.running import explained_errors


def serve(
    folder: Annotated[
        Path, typer.Argument(help="A folder of circuits (.circuit, .json) or pages.")
    ],
    port: Annotated[int, typer.Option(help="0 takes any that is free.")] = 8750,
) -> None:
    """Show the circuits of a folder in a browser on this machine, and to nobody else.

    Pages work without it; it lists what is there and draws .circuit files when asked. Nothing
    outside the folder is shown. Ends with Ctrl+C.

    Example: circuits serve circuits-of-today
    """
    from circuits.server import server_of

    with explained_errors():
        server = server_of(folder, port)
    typer.echo(f"http://127.0.0.1:{server.server_port}/  (this machine only; Ctrl+C ends it)")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        typer.echo("", err=True)
    finally:
        server.server_close()
