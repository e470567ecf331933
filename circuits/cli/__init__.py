"""The command line: parse, call, print. Results go to stdout, progress and errors to stderr.

Exit codes: 0, 1 for a check that failed, 2 for bad arguments. One file per group of commands; what
needs a model is imported when a command runs, so that `show`, `compare`, `convert`, `list`,
`features show` and `serve` do without torch.
"""

import typer

from circuits.cli import comparing, features, files, models, serving, sets, testing, tracing

app = typer.Typer(
    name="circuits",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Which tokens, heads and features made a language model predict this, exactly.",
)
# in the order in which people meet them
app.command()(tracing.demo)
app.command("list")(sets.list_sets)
app.command()(tracing.plan)
app.command()(tracing.trace)
app.command()(files.show)
app.command("test")(testing.test)
app.command()(comparing.compare)
app.command()(files.convert)
app.command()(serving.serve)
app.add_typer(features.app, name="features")
app.command()(models.train)
