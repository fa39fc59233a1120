"""The command ``dualtail``: the list of commands, and what becomes of errors."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import click
import typer

from dualtail import __version__
from dualtail.cli import check, data, predict, report, run_
from dualtail.errors import DualtailError, Interrupted

app = typer.Typer(
    name="dualtail",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find and remove the two imbalances of a classifier fine-tuned from foundation models on long-tailed data.",
    epilog="Start with: dualtail data digits digits && dualtail run recipes/digits_lt.yaml --set data.root=digits "
    "--out runs/digits",
)
app.command("run")(run_.run)
app.command("check")(check.check)
app.command("predict")(predict.predict)
app.command("report")(report.report)
app.add_typer(data.app, name="data")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"dualtail {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    pass


def run() -> None:
    """Run the command line: a user's mistake is one line on stderr and exit code 2."""
    command = typer.main.get_command(app)
    try:
        code = command.main(standalone_mode=False, prog_name="dualtail")
    except Interrupted as error:
        sys.exit(_say(str(error), 130))
    except DualtailError as error:
        sys.exit(_say(f"error: {error}", 2))
    except click.ClickException as error:
        hint = f"; see 'dualtail {error.ctx.info_name} --help'" if _is_usage_error(error) else ""  # type: ignore[attr-defined]
        sys.exit(_say(f"error: {error.format_message().rstrip('.')}{hint}", 2))
    except (KeyboardInterrupt, click.Abort):
        sys.exit(_say("stopped; the same command goes on where it was", 130))
    except BrokenPipeError:
        # The reader of our output went away (`| head`); a second failure at exit is avoided by a closed stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _is_usage_error(error: click.ClickException) -> bool:
    return isinstance(error, click.UsageError) and error.ctx is not None and error.ctx.parent is not None


def _say(line: str, code: int) -> int:
    print(" ".join(line.split()), file=sys.stderr)
    return code
