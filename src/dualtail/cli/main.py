"""The command ``dualtail``: the list of commands, and what becomes of errors."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from dualtail import __version__
from dualtail.cli import check, data, demo, lab, predict, report, run_
from dualtail.engine.stop import GracefulStop
from dualtail.errors import DualtailError, Interrupted, printable
from dualtail.files import file_error

# Typer carries its own click or uses the installed one, depending on its version; either way these are its errors.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]
ClickException: type[Exception] = typer.BadParameter.__mro__[2]

# These keep what they finished.
RESUMED = ("run", "demo", "lab")
_INTERRUPTED = 130
_SIGNALLED = 128  # and the number of the signal: a shell's own way to tell

app = typer.Typer(
    name="dualtail",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find and remove the two imbalances of a classifier fine-tuned from foundation models on long-tailed data.",
    epilog="Start with: dualtail demo",
)
app.command("demo")(demo.demo)
app.command("run")(run_.run)
app.command("check")(check.check)
app.command("predict")(predict.predict)
app.command("report")(report.report)
app.add_typer(data.app, name="data")
app.add_typer(lab.app, name="lab")


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
    # Loader workers and torch's threads share the cores: threads that wait by spinning cost several times the speed.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    command = typer.main.get_command(app)
    stop = GracefulStop()
    try:
        with stop, stop.at_once():
            code = command.main(standalone_mode=False, prog_name="dualtail")
            sys.stdout.flush()  # on a full disk it fails, and here that is a line
    except Interrupted as error:
        sys.exit(_say(str(error), _SIGNALLED + error.signal))
    except DualtailError as error:
        sys.exit(_say(f"error: {error}", 2))
    except ClickException as error:
        line = _usage_line(error)
        sys.exit(_say(f"error: {line}", 2) if line else 2)  # empty where the help was printed in its place
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except RuntimeError as error:
        from dualtail.process_group import is_lost_process

        if not is_lost_process(error):
            raise
        sys.exit(_say("error: another process of this run ended; start all of them again to go on", 2))
    except BrokenPipeError:
        # The reader of our output went away (`| head`); a second failure at exit is avoided by a closed stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        # A full disk, a directory without permission: the user's to mend. Results are written whole or not at all.
        sys.exit(_say(f"error: {file_error('a file or the output', error)}", 2))
    if code == _INTERRUPTED:  # Typer returns it in place of a KeyboardInterrupt
        resumed = sys.argv[1:2] and sys.argv[1] in RESUMED
        code = _SIGNALLED + stop.number
        _say("stopped; the same command goes on where it was" if resumed else "stopped", code)
    sys.exit(code if isinstance(code, int) else 0)


def _usage_line(error: Any) -> str:
    """Return what is wrong with the command line, and where help is."""
    message = error.format_message().strip().rstrip(".")
    context = getattr(error, "ctx", None)
    if not (message and context and isinstance(error, UsageError)):
        return str(message)
    return f"{message}; see '{context.command_path} --help'"


def _say(line: str, code: int) -> int:
    # Of several processes any one may be the first to meet a fault.
    several = f"[process {os.environ.get('RANK')}] " if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""
    print(several + printable(" ".join(line.split())), file=sys.stderr)
    return code
