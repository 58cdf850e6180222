"""`deepspeed --module mixcore.trainers.deepspeed train.py ...`: a script that cannot be edited."""

import argparse
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mixcore.errors import ArgumentError
from mixcore.trainers.settings import add_arguments

USAGE = "deepspeed --module mixcore.trainers.deepspeed train.py [arguments of the script] --mix-..."


def main(argv: Sequence[str]) -> None:
    """Run a script whose `deepspeed.initialize(training_data=...)` then reads the mixture.

    What it needs: training_data is a torch ConcatDataset (its parts are the domains, in the order
    of the settings' `domains`), the script trains on the loader that initialize returns, and saves
    and loads through the engine. What it cannot do: methods that need losses, since nobody tells
    which samples a loss is of.
    """
    rank = [word for word in argv if word.startswith("--local_rank")]
    rest = [word for word in argv if word not in rank]
    if not rest or rest[0].startswith("-"):
        raise ArgumentError(f"no script given, got {list(argv)}; usage: {USAGE}")
    args, others = add_arguments(argparse.ArgumentParser(allow_abbrev=False)).parse_known_args(rest)
    script = others[0]
    if not Path(script).is_file():
        raise ArgumentError(f"there is no script {script!r}; usage: {USAGE}")
    import deepspeed

    deepspeed.initialize = wrapped(deepspeed.initialize, args)
    sys.argv = [script, *rank, *others[1:]]
    sys.path[0] = str(Path(script).resolve().parent)
    runpy.run_path(script, run_name="__main__")


def wrapped(original: Callable[..., Any], args: Any) -> Callable[..., Any]:
    """`deepspeed.initialize` with our loader in place of its own."""

    def initialize(*positional: Any, **named: Any) -> Any:
        import torch
        from torch.utils.data import ConcatDataset, default_collate

        import mixcore.trainers.deepspeed as ours

        data = named.pop("training_data", None)
        if positional or not isinstance(data, ConcatDataset):
            raise ArgumentError(
                f"training_data must be given by name and be a torch ConcatDataset, whose parts "
                f"are the domains, got {data!r}"
            )
        collate = named.get("collate_fn") or default_collate
        engine, optimizer, _, scheduler = original(**named)
        names = _names(args, engine, len(data.datasets))
        parts = dict(zip(names, map(_Raw, data.datasets), strict=True))
        loader, mixer = ours.initialize(
            args,
            engine,
            parts,
            collate_fn=lambda samples: {"raw": collate([s["raw"] for s in samples])},
            pin_memory=torch.cuda.is_available(),
        )
        _follow(engine, mixer)
        return engine, optimizer, _Loader(loader, mixer), scheduler

    return initialize


def _names(args: Any, engine: Any, count: int) -> list[str]:
    """Of the domains, from the section or the file: their order is that of the parts."""
    from mixcore._yaml import parse
    from mixcore.trainers._deepspeed_check import SECTION
    from mixcore.trainers._deepspeed_engine import config_of

    section = config_of(engine).get(SECTION) or {}
    entries = section.get("domains") if isinstance(section, dict) else None
    if entries is None and args.mix_config is not None:
        body = parse(Path(args.mix_config).read_bytes(), args.mix_config)[0]
        entries = body.get("domains") if isinstance(body, dict) else None
    names = [e.get("name") for e in entries or () if isinstance(e, dict)]
    if len(names) != count:
        raise ArgumentError(
            f"domains must name the {count} parts of training_data in their order, got {names}"
        )
    return [str(name) for name in names]


def _follow(engine: Any, mixer: Any) -> None:
    """Let the mixer step, save and load with the engine."""
    step, save, load = engine.step, engine.save_checkpoint, engine.load_checkpoint
    from mixcore.trainers.deepspeed import KEY

    def stepped(*args: Any, **named: Any) -> Any:
        result = step(*args, **named)
        mixer.step()
        return result

    def saved(save_dir: Any, tag: Any = None, client_state: Any = None, **named: Any) -> Any:
        state = {**(client_state or {}), KEY: mixer.state_dict()}
        return save(save_dir, tag=tag, client_state=state, **named)

    def loaded(*args: Any, **named: Any) -> Any:
        path, state = load(*args, **named)
        return (path, mixer.take(path, state)) if path is not None else (path, state)

    engine.step, engine.save_checkpoint, engine.load_checkpoint = stepped, saved, loaded


class _Raw:
    """A part of the script's data: samples of any kind."""

    def __init__(self, part: Any) -> None:
        self._part = part

    def __len__(self) -> int:
        return len(self._part)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"raw": self._part[index]}


class _Loader:
    """Gives the script its batches, and the mixer what they were."""

    def __init__(self, loader: Any, mixer: Any) -> None:
        self._loader, self._mixer = loader, mixer

    def __iter__(self) -> Any:
        for batch in self._loader:
            self._mixer.observe(batch)
            yield batch["raw"]
