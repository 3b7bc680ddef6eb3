"""The command line and its one error boundary: domain code raises, only this file turns that into a line and an exit code."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer

from toolkit.cli import cleanup, doctor, explore, ingest, models, new, promote, schedule, score, sweep, train
from toolkit.cli.output import seal_stdout, show_warnings
from toolkit.core.errors import Interrupted, UserError

OK, FAILED, USAGE, NO, BUG, INTERRUPTED = 0, 1, 2, 3, 70, 130

EXIT_CODES = {
    OK: "done",
    FAILED: "refused or failed for a reason you can act on: one line, `error: RULE, got VALUE; NEXT STEP`",
    USAGE: "wrong usage",
    NO: 'the answer is "no": a gate refused, or an alert fired',
    BUG: "a bug of the toolkit: traceback, and where to report it",
    INTERRUPTED: "interrupted; what was finished is kept, and the message says how to resume",
}

# Typer has carried its own copy of click since 0.26; the base class is reached through what both worlds export.
UsageError: Any = typer.BadParameter.__bases__[0]

# What the machine refuses, whichever library happened to ask.
REFUSED_BY_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}

app = typer.Typer(
    name="toolkit",
    help="Parallel model search with Ray Tune, from a laptop to a Spark cluster: every trial in MLflow, nothing lost.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # it would eat the [field.names] of the help texts
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("doctor")(doctor.doctor)
app.command("new")(new.new)
app.command("explore")(explore.explore)
app.command("sweep")(sweep.sweep)
app.command("train")(train.train)
app.command("models")(models.models)
app.command("promote")(promote.promote)
app.command("rollback")(models.rollback)
app.command("ingest")(ingest.ingest)
app.command("schedule")(schedule.schedule)
app.command("score")(score.score)
app.command("cleanup")(cleanup.cleanup)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"toolkit {version('ray-spark-toolkit')}")
        raise typer.Exit


@app.callback()
def _toolkit(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")] = False,
) -> None:
    pass


def run(arguments: Sequence[str]) -> int:
    """The exit code of `toolkit ARGUMENTS`. Errors are told on standard error; standard output then stays empty."""
    show_warnings()
    command: Any = typer.main.get_command(app)
    try:
        with command.make_context("toolkit", list(arguments) or ["--help"]) as context:
            command.invoke(context)
    except typer.Exit as exit_request:
        return exit_request.exit_code
    except UsageError as error:
        path = error.ctx.command_path if error.ctx else "toolkit"
        text = error.format_message().rstrip(".").replace("Value error, ", "").replace("Input should be", "must be")
        return _fail(USAGE, f"{text}; see {path} --help")
    except UserError as error:
        return _fail(FAILED, str(error))
    except Interrupted as error:
        return _fail(INTERRUPTED, str(error) or "interrupted", prefix="")
    except KeyboardInterrupt:
        return _fail(INTERRUPTED, "interrupted", prefix="")
    except Exception as error:
        if isinstance(error, OSError) and error.errno in REFUSED_BY_MACHINE:
            where = f" {error.filename}" if error.filename else ""
            return _fail(FAILED, f"the machine must let the toolkit write{where}, got {error.strerror}; free space, or set TOOLKIT_HOME")
        traceback.print_exc()
        return _fail(BUG, "this is a bug of the toolkit, not of your input; report it with the lines above, as CONTRIBUTING.md says")
    return OK


def main() -> NoReturn:
    code = run(sys.argv[1:])
    seal_stdout()
    sys.exit(code)


def _fail(code: int, text: str, prefix: str = "error: ") -> int:
    sys.stderr.write(prefix + " ".join(text.split()) + "\n")
    sys.stderr.flush()
    return code
