"""`python -m mixcore.cli`."""

from mixcore.cli import main

main(prog_name="mixcore")
