"""`mixcore report`: what a mixture cost to find and to steer, against what it gained."""

import csv
from typing import Any

import click

from mixcore.cli import show
from mixcore.costs import Cost, flops, read_costs, summary, tokens_to_reach
from mixcore.errors import DataError
from mixcore.stages import load_pipeline, pipeline_facts


@click.command(
    "report",
    epilog="\b\nExample:\n  mixcore report costs.jsonl --runs runs.csv --params 1e9 "
    "--baseline baseline.csv --curve mine.csv",
)
@click.argument("costs", required=False, type=click.Path(exists=True, dir_okay=False))
@click.option("--runs", type=click.Path(exists=True, dir_okay=False),
              help="Proxy runs: a table with the columns params and tokens.")  # fmt: skip
@click.option("--pipeline", type=click.Path(exists=True, dir_okay=False),
              help="Stages with params: FLOPs of the run itself.")  # fmt: skip
@click.option("--params", type=float, help="Parameters of the model that the curves are of.")
@click.option("--baseline", type=click.Path(exists=True, dir_okay=False),
              help="Loss curve without the mixture: a CSV of tokens, loss.")  # fmt: skip
@click.option("--curve", type=click.Path(exists=True, dir_okay=False),
              help="Loss curve with it, of the same model.")  # fmt: skip
@click.option("--json", "json_", is_flag=True, help="Print the facts as JSON.")
def command(
    costs: str | None, runs: str | None, pipeline: str | None, params: float | None,
    baseline: str | None, curve: str | None, json_: bool,
) -> None:  # fmt: skip
    """Show what was spent, in FLOPs, and what that bought in tokens."""
    if not any((costs, runs, pipeline)):
        raise click.UsageError("nothing to report: give COSTS, --runs or --pipeline")
    if (baseline is None) != (curve is None):
        raise click.UsageError("--baseline and --curve go together")
    found, broken = read_costs(costs) if costs else ([], 0)
    if runs:
        found = [*found, *_proxies(runs)]
    if pipeline:
        for stage in pipeline_facts(load_pipeline(pipeline))["stages"]:
            if stage["flops"] is None:
                raise DataError(f"{pipeline}: params and tokens_per_sample are needed for FLOPs")
            found.append(Cost("train", stage["flops"], stage["name"], "planned"))
    facts = summary(found)
    facts["incomplete_lines"] = broken
    facts["gain"] = _gain(baseline, curve, params, facts["spent"]) if baseline and curve else None
    if json_:
        show.as_json(facts)
        return
    out = show.console()
    rows = [[k, f"{v:.4g}"] for k, v in facts["flops"].items() if v]
    out.print(show.table("FLOPs", ["kind", "FLOPs"], rows))
    overhead = facts["overhead"]
    if overhead is not None:
        out.print(f"beside training: {facts['spent']:.4g} FLOPs, {overhead:.2%} of it")
    gain = facts["gain"]
    if gain is not None:
        out.print(f"loss at the end: {gain['loss']:.4f}, baseline {gain['baseline_loss']:.4f}")
        if gain["saved_tokens"] is None:
            out.print("the baseline's last loss is never reached: nothing is gained")
        else:
            out.print(f"tokens saved up to the baseline's last loss: {gain['saved_tokens']:.4g}")
        if gain["net_flops"] is not None:
            out.print(f"FLOPs saved less FLOPs spent: {gain['net_flops']:.4g}")


def _rows(path: str, columns: tuple[str, ...]) -> list[list[float]]:
    with open(path, newline="") as f:
        reader = csv.DictReader(f)
        missing = [c for c in columns if c not in (reader.fieldnames or [])]
        if missing:
            raise DataError(f"{path}: the column {missing[0]} is missing")
        try:
            rows = [[float(row[c]) for c in columns] for row in reader]
        except (TypeError, ValueError) as e:
            raise DataError(f"{path}: line {reader.line_num}: {e}") from None
    if not rows:
        raise DataError(f"{path}: no rows")
    return rows


def _proxies(path: str) -> list[Cost]:
    rows = _rows(path, ("params", "tokens"))
    return [Cost("proxy", flops("proxy", n, t), note=path) for n, t in rows]


def _gain(baseline: str, curve: str, params: float | None, spent: float) -> dict[str, Any]:
    theirs, mine = _rows(baseline, ("tokens", "loss")), _rows(curve, ("tokens", "loss"))
    goal = theirs[-1][1]
    reached = tokens_to_reach([t for t, _ in mine], [y for _, y in mine], goal)
    saved = None if reached is None else theirs[-1][0] - reached
    worth = None if saved is None or params is None else saved * flops("train", params, 1)
    return {
        "baseline_loss": goal,
        "loss": mine[-1][1],
        "saved_tokens": saved,
        "saved_flops": worth,
        "net_flops": None if worth is None else worth - spent,
    }
