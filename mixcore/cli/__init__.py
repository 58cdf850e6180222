"""The command line `mixcore`: one file a command."""

import sys
import warnings
from collections.abc import Sequence
from typing import Any

import click

import mixcore
from mixcore.cli import (
    bench,
    build_cuda,
    doctor,
    explain,
    fit,
    inverse,
    methods,
    partition,
    pipeline,
    plan,
    report,
    sweep,
    transfer,
)
from mixcore.errors import MixcoreError

MISTAKE = 2  # exit code of a user's mistake


class _Commands(click.Group):
    """A group whose errors and warnings are one line on stderr, never a traceback."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        *_: Any,
        **extra: Any,
    ) -> Any:
        extra["standalone_mode"] = False  # click hands its errors over instead of printing them
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("always", UserWarning)
                warnings.showwarning = _show_warning
                result = super().main(args, prog_name, **extra)
        except click.ClickException as e:
            message = e.format_message()
        except (MixcoreError, OSError) as e:
            message = str(e)
        except click.Abort:
            click.echo("mixcore: interrupted", err=True)
            sys.exit(130)
        else:
            sys.exit(result if isinstance(result, int) else 0)
        click.echo(f"mixcore: error: {message}", err=True)
        sys.exit(MISTAKE)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    click.echo(f"mixcore: warning: {message}", err=True)


@click.group(
    "mixcore",
    cls=_Commands,
    epilog="\b\nExample:\n  mixcore plan mix.yaml\n  mixcore explain ledger.json --step 1000",
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(mixcore.__version__, prog_name="mixcore")
@click.pass_context
def main(context: click.Context) -> None:
    """The data mixture of a pretraining run as a pure function of position.

    Exit code 2 and one line on stderr mean a mistake in what was asked or in a file.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


_COMMANDS = (
    plan,
    explain,
    fit,
    transfer,
    sweep,
    partition,
    inverse,
    pipeline,
    report,
    methods,
    bench,
    build_cuda,
    doctor,
)
for _module in _COMMANDS:
    main.add_command(_module.command)
