"""Running the command line in a test."""

import json
from pathlib import Path

from click.testing import CliRunner, Result

from mixcore.cli import main

EXAMPLE = str(Path(__file__).parent.parent / "examples" / "mix.yaml")


def run(*args: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, args)
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def refused(*args: str) -> str:
    """The one line on stderr of a mistake."""
    result = run(*args, code=2)
    assert result.stdout == ""
    assert result.stderr.startswith("mixcore: error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("mixcore: error: ").rstrip("\n")


def facts_of(*args: str) -> dict:
    result = run(*args, "--json")
    assert result.stderr == ""
    return json.loads(result.stdout)
