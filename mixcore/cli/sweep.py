"""`mixcore sweep plan|run|collect`: proxy runs over many mixtures."""

from pathlib import Path
from typing import Any

import click

from mixcore._yaml import parse
from mixcore.cli import show
from mixcore.config import load_config
from mixcore.errors import ArgumentError
from mixcore.sweep import DRAWS, Sweep, collect, draw, plan_sweep, run_local
from mixcore.sweep.local import RunError, run_ray, slurm_script


@click.group("sweep")
def command() -> None:
    """Draw mixtures, do a proxy run with each, collect the losses into one table."""


@command.command(
    "plan",
    epilog="\b\nExample:\n  mixcore sweep plan mix.yaml -o sweep --draw regmix --runs 64 "
    "--command 'python proxy.py {mix} {result}'",
)
@click.argument("mix_yaml", type=click.Path(exists=True, dir_okay=False))
@click.option("-o", "--out", required=True, type=click.Path(), help="A new folder.")
@click.option("--command", "template", required=True,
              help="Shell command of a run: {mix} {result} {run} {dir} {seed}.")  # fmt: skip
@click.option("--draw", "kind", type=click.Choice(list(DRAWS)), default="regmix",
              show_default=True)  # fmt: skip
@click.option("--runs", type=click.IntRange(1), help="Mixtures; default: 3 (domains + 1).")
@click.option("--option", "options", multiple=True, metavar="NAME=VALUE",
              help="Of the draw, as strength=10; may be repeated.")  # fmt: skip
@click.option("--prior", type=click.Choice(["weights", "sizes"]), default="weights",
              show_default=True, help="What the draw is around.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the draw.")
@click.option("--seeds", default="", help="Run every mixture with each of these, as 1,2,3.")
@click.option("--json", "json_", is_flag=True, help="Print the facts as JSON.")
def plan(
    mix_yaml: str,
    out: str,
    template: str,
    kind: str,
    runs: int | None,
    options: tuple[str, ...],
    prior: str,
    seed: int,
    seeds: str,
    json_: bool,
) -> None:
    """Draw mixtures around a mix.yaml and write one folder with a mix.yaml a run."""
    config = load_config(mix_yaml)
    tops = config.domains if config.groups is None else config.groups.domains
    if prior == "sizes":
        sizes = [d.size for d in tops]
        if None in sizes:
            raise ArgumentError("--prior sizes needs a size of every domain")
        around: Any = sizes
    elif config.weights is None:
        raise ArgumentError(f"--prior weights: {mix_yaml} has no weights; take --prior sizes")
    elif config.groups is None:
        around = config.weights
    else:
        around = config.groups.sums(config.weights)
    try:
        all_seeds = [int(s) for s in seeds.split(",") if s]
    except ValueError:
        raise ArgumentError(f"--seeds must be integers with commas, got {seeds!r}") from None
    rows = draw(kind, around, runs, seed, **_options(options))
    sweep = plan_sweep(out, config, rows, template, seeds=all_seeds)
    facts = {"folder": out, "runs": len(sweep.runs), "domains": len(sweep.domains), "draw": kind}
    if json_:
        show.as_json(facts)
    else:
        click.echo(f"{len(sweep.runs)} runs over {len(sweep.domains)} domains in {out}")
        click.echo(f"mixcore sweep run {out} --jobs 2")


def _options(given: tuple[str, ...]) -> dict[str, Any]:
    made = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals:
            raise ArgumentError(f"--option must be NAME=VALUE, got {item!r}")
        made[name] = parse(value.encode(), f"--option {name}")[0]
    return made


@command.command("run", epilog="\b\nExample:\n  mixcore sweep run sweep --jobs 4")
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True,
              help="Runs in parallel on this machine.")  # fmt: skip
@click.option("--index", type=click.IntRange(0), help="Do only the run of this number.")
@click.option("--slurm", type=click.Path(dir_okay=False),
              help="Write an array script for sbatch there, and run nothing.")  # fmt: skip
@click.option("--sbatch", multiple=True, help="A line for the script, as --time=2:00:00.")
@click.option("--ray", is_flag=True, help="Hand the runs to a Ray cluster.")
def run(
    folder: str,
    jobs: int,
    index: int | None,
    slurm: str | None,
    sbatch: tuple[str, ...],
    ray: bool,
) -> None:
    """Do the runs that are missing. Killed and called again, it goes on with what is missing."""
    sweep = Sweep.load(folder)
    if slurm is not None:
        Path(slurm).write_text(slurm_script(sweep, options=sbatch))
        click.echo(f"sbatch {slurm}")
        return
    if index is not None and index >= len(sweep.runs):
        raise ArgumentError(f"--index must be below {len(sweep.runs)}, the runs, got {index}")
    only = None if index is None else [sweep.runs[index]]
    with show.progress() as bar:
        task = bar.add_task("runs", total=len(sweep.runs))
        if ray:
            failed = run_ray(sweep)
        else:
            failed = run_local(
                sweep,
                jobs=jobs,
                only=only,
                progress=lambda done, of: bar.update(task, completed=done, total=of),
            )
    missing = len(sweep.missing())
    click.echo(f"{len(sweep.runs) - missing} of {len(sweep.runs)} runs are done")
    if failed:
        more = f" (and {len(failed) - 1} more failed)" if len(failed) > 1 else ""
        raise RunError(failed[0] + more)


@command.command("collect", epilog="\b\nExample:\n  mixcore sweep collect sweep -o runs.csv")
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
@click.option("-o", "--out", default="runs.csv", show_default=True, type=click.Path())
@click.option("--json", "json_", is_flag=True, help="Print the facts as JSON.")
def collect_(folder: str, out: str, json_: bool) -> None:
    """Collect the losses of the finished runs into a table, one row a run."""
    sweep = Sweep.load(folder)
    with show.progress() as bar:
        task = bar.add_task("results", total=len(sweep.runs))
        rows, missing = collect(
            sweep, out, progress=lambda done, of: bar.update(task, completed=done, total=of)
        )
    if json_:
        show.as_json({"file": out, "rows": rows, "missing": missing})
    else:
        click.echo(f"{rows} runs in {out}, {len(missing)} missing")
