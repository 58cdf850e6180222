"""The demo: real text, a small GPT, a changing mixture, a kill, a resume in another size, a proof.

    $ python examples/demo/run.py --out demo-out          # a few minutes on two cores
    $ python examples/demo/run.py --out demo-out --fast   # half a minute, for smoke tests
    $ python examples/demo/run.py --method odm            # a method steers: into demo-out-odm

Run again with the same --out after an interruption, it goes on from the last checkpoint; after a
finished run it starts afresh. Exit code 0 if the proof holds, 1 if not, 2 for a user's mistake.
"""

import argparse
import fcntl
import importlib.util
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

# Import name -> what to install; looked for first, so that a missing one gives one clear line.
NEEDS = {
    "mixcore._core": "mixcore (built)",
    **{name: name for name in ("numpy", "rich", "torch", "tokenizers", "matplotlib")},
}
LOCK_PATIENCE = 15.0  # seconds
OURS = ("demo", "plan.json", "tokens", "ledger.json", "checkpoint", "log", "output", "finished")


def missing_packages() -> list[str]:
    """Return what the demo needs and cannot import."""
    missing = []
    for name, title in NEEDS.items():
        try:
            found = importlib.util.find_spec(name) is not None
        except ModuleNotFoundError:  # the parent package is missing
            found = False
        if not found:
            missing.append(title)
    return missing


if missing := missing_packages():
    print(f"demo: not found: {', '.join(missing)}. `make demo` installs and builds all it needs.")
    sys.exit(2)

import corpus  # noqa: E402
from attempts import Attempts, TrainingFailed  # noqa: E402
from plan import Plan, make_plan  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.markup import escape  # noqa: E402
from rich.progress import (  # noqa: E402
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

console = Console(highlight=False)


def claim(out: Path) -> int:
    """Take the folder for this process and its children; return the descriptor of the lock.

    Ends with one line if the folder holds other things or another demo is at work there.
    """
    if out.exists() and not out.is_dir():
        stop(f"--out {out} is a file")
    if out.is_dir() and any(out.iterdir()) and not (out / "demo").exists():
        stop(f"--out {out} holds files that no demo wrote; give a new or empty folder")
    out.mkdir(parents=True, exist_ok=True)
    # The ranks inherit the lock: where a killed demo's ranks are still alive, they are waited for.
    lock = os.open(out / "demo", os.O_RDWR | os.O_CREAT)
    deadline = time.monotonic() + LOCK_PATIENCE
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() > deadline:
                stop(f"--out {out} is in use by another demo")
            time.sleep(0.1)


def unfinished(
    out: Path, fast: bool, steps: int | None, method: str | None, fresh: bool
) -> Plan | None:
    """Return the plan of an interrupted run; or empty the folder and return None; say which."""
    if not (out / "plan.json").exists():
        console.print(f"Starting afresh in {out}: nothing there to go on with.")
    elif (out / "finished").exists():
        console.print(f"Starting afresh in {out}: the run there is finished.")
    elif fresh:
        console.print(f"Starting afresh in {out}, as --fresh asks.")
    else:
        plan = Plan.load(out / "plan.json")
        if plan == make_plan(plan.domains, fast, steps, method):
            console.print(f"Going on with the interrupted run in {out}.")
            return plan
        console.print(f"Starting afresh in {out}: the run there had other options.")
    for name in OURS[1:]:
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return None


def stop(message: str) -> NoReturn:
    """End with one line and exit code 2."""
    console.print(f"[bold red]demo:[/] {escape(message)}", soft_wrap=True)
    sys.exit(2)


def check_method(name: str) -> None:
    """End with one line if this method cannot steer the demo."""
    from steering import refuse

    if reason := refuse(name, [domain.name for domain in corpus.DOMAINS], steps=1200):
        stop(reason)


def bars() -> Progress:
    """Return the progress display that all stages use."""
    return Progress(
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=40),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    )


def prepare(out: Path, fast: bool, steps: int | None, method: str | None) -> Plan:
    """Gather and tokenise the domains; `plan.json` is written last and says that all is there."""
    from tokens import tokenise

    rows: dict[str, corpus.Gathered] = {}
    scale = make_plan([corpus.DOMAINS[0].name], fast, steps).scale
    with bars() as progress:
        task = progress.add_task("gather", total=len(corpus.DOMAINS), note="")

        def gathered(found: corpus.Gathered) -> None:
            rows[found.name] = found
            progress.update(task, advance=1, note=found.title)

        try:
            domains = corpus.gather(corpus.DOMAINS, scale, gathered)
        except LookupError as error:
            progress.stop()
            stop(str(error))
        for found in rows.values():
            if found.missing:
                console.print(f"[yellow]{found.missing}[/]")
        plan = make_plan([found.name for found in domains], fast, steps, method)
        task = progress.add_task("tokenise", total=len(domains), note="training the tokenizer")
        tokens = tokenise(
            domains,
            out / "tokens",
            plan.vocab,
            lambda name, _: progress.update(task, advance=1, note=name),
        )
    for found in domains:
        left = f", {found.duplicates} duplicates left out" if found.duplicates else ""
        left += f", {found.undecodable} not UTF-8 left out" if found.undecodable else ""
        console.print(
            f"  {found.name:<10} {found.files:>4} files {found.num_bytes:>10,} bytes"
            f" {tokens[found.name]:>9,} tokens{left}"
        )
    plan.save(out / "plan.json")
    return plan


def train(out: Path, plan: Plan, lock: int) -> None:
    """Train with two ranks until the planned kill, then with one; an interrupted part goes on."""
    attempts = Attempts(out, plan, lock)
    with bars() as progress:
        task = progress.add_task("train", total=plan.steps, note="")
        last_line = -1

        def on_step(step: int, loss: float, world: int) -> None:
            nonlocal last_line
            note = f"{world} rank{'s' * (world > 1)}, loss {loss:.2f}"
            progress.update(task, completed=step, note=note)
            tenth = 10 * step // plan.steps
            if not console.is_terminal and tenth != last_line:
                last_line = tenth
                console.print(f"  step {step:>5} of {plan.steps}, {note}")

        if not attempts.past_kill():
            codes = attempts.run(world=2, on_step=on_step, kill_step=plan.kill_step)
            console.print(
                f"  SIGKILL to the group of both ranks after step {plan.kill_step}"
                f" (exit codes {', '.join(map(str, codes))}); resuming with 1 rank",
                soft_wrap=True,
            )
        attempts.run(world=1, on_step=on_step)


def conclude(out: Path) -> bool:
    """Prove and draw, from the logs alone."""
    from history import read
    from plot import draw
    from proof import prove

    holds = prove(out / "log", console)
    picture = out / "mixture.png"
    draw(read(out / "log"), picture)
    console.print(f"Picture: {picture}    logs: {out / 'log'}    ledger: {out / 'ledger.json'}")
    return holds


def main() -> int:
    """Run all stages; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder to write to (demo-out, demo-out-METHOD)")
    parser.add_argument("--fast", action="store_true", help="half a minute, for smoke tests")
    parser.add_argument("--steps", type=int, help="optimizer steps (1200, or 60 with --fast)")
    parser.add_argument("--fresh", action="store_true", help="do not go on with what is in --out")
    parser.add_argument("--method", help="let this method steer, in place of the fixed schedule")
    options = parser.parse_args()
    options.out = options.out or Path("demo-out" + (f"-{options.method}" * bool(options.method)))
    if options.steps is not None and options.steps < 40:
        stop(f"--steps must be at least 40, got {options.steps}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through the finally blocks
    began = time.monotonic()
    try:
        what = (options.fast, options.steps, options.method)
        if options.method is not None:
            check_method(options.method)
        lock = claim(options.out)
        plan = unfinished(options.out, *what, options.fresh)
        plan = plan or prepare(options.out, *what)
        train(options.out, plan, lock)
        holds = conclude(options.out)
    except TrainingFailed as error:
        console.print(f"[bold red]demo:[/] {escape(str(error))}", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("Stopped. Run the same command again to go on from the last checkpoint.")
        return 130
    (options.out / "finished").write_text("PASS\n" if holds else "FAIL\n")
    verdict = "[bold green]The proof holds.[/]" if holds else "[bold red]The proof fails.[/]"
    console.print(f"{verdict} {time.monotonic() - began:.0f} s in all.")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
