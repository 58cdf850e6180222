"""`mixcore pipeline plan|next`: stages that share caps and hand a ledger on."""

from pathlib import Path

import click

from mixcore.cli import show
from mixcore.errors import ArgumentError
from mixcore.ledger import Ledger
from mixcore.stages import begin, hand_over, load_pipeline, pipeline_facts


@click.group("pipeline")
def command() -> None:
    """Plan a run of several stages, and hand its ledger from stage to stage."""


@command.command("plan", epilog="\b\nExample:\n  mixcore pipeline plan pipeline.yaml")
@click.argument("pipeline_yaml", type=click.Path(exists=True, dir_okay=False))
@click.option("--json", "json_", is_flag=True, help="Print the facts as JSON.")
def plan(pipeline_yaml: str, json_: bool) -> None:
    """Samples, epochs over all stages, caps and FLOPs: exact, before the run."""
    facts = pipeline_facts(load_pipeline(pipeline_yaml))
    if json_:
        show.as_json(facts)
        return
    out = show.console()
    for s in facts["stages"]:
        rows = [
            [d["name"], show.number(d["samples"]), show.number(d["epochs"]),
             show.number(d["epochs_so_far"]), show.number(d["cap_reached"])]
            for d in s["domains"][:200]
        ]  # fmt: skip
        where = "a new ledger" if s["new_ledger"] else "the same ledger"
        title = (
            f"Stage {s['name']}: positions {s['start']:,} to {s['end']:,} of {where}, "
            f"{show.number(s['tokens'])} tokens, {show.number(s['flops'])} FLOPs"
        )
        heads = ["domain", "samples", "epochs", "epochs so far", "cap reached at"]
        out.print(show.table(title, heads, rows))


@command.command(
    "next",
    epilog="\b\nExample:\n  mixcore pipeline next pipeline.yaml anneal --ledger pretrain.json "
    "--position 51200 -o anneal.json",
)
@click.argument("pipeline_yaml", type=click.Path(exists=True, dir_okay=False))
@click.argument("stage")
@click.option("--ledger", type=click.Path(exists=True, dir_okay=False),
              help="Of the stage before; none for the first stage.")  # fmt: skip
@click.option("--position", type=click.IntRange(0), help="Samples consumed when that ended.")
@click.option("-o", "--out", required=True, type=click.Path(), help="The stage's ledger: new.")
def next_(
    pipeline_yaml: str, stage: str, ledger: str | None, position: int | None, out: str
) -> None:
    """Write the ledger that a STAGE begins with, from the one that the stage before has left."""
    pipeline = load_pipeline(pipeline_yaml)
    names = [s.name for s in pipeline.stages]
    if stage not in names:
        raise ArgumentError(f"STAGE must be one of {', '.join(names)}, got {stage!r}")
    index = names.index(stage)
    if (ledger is None) != (index == 0) or (position is None) != (index == 0):
        raise ArgumentError(
            f"stage {stage!r} is number {index}: the first takes no --ledger and no --position, "
            "all others need both"
        )
    if Path(out).exists():
        raise ArgumentError(f"--out must be new, but {out} exists")
    if ledger is None or position is None:
        ready = begin(pipeline.stages[0])
    else:
        cuts = {s.config.tokens_per_sample for s in pipeline.stages[:index]}
        if len(cuts) > 1:
            raise ArgumentError(
                "tokens_per_sample has changed before: hand over with mixcore.stages.hand_over and "
                "its used_tokens"
            )
        ready = hand_over(Ledger.load(ledger), position, pipeline.stages[index])
    ready.ledger.save(out)
    click.echo(f"{out}: stage {stage} from position {ready.start:,} to {ready.end:,}")
