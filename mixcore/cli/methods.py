"""`mixcore methods`: which methods there are, and what each needs."""

from dataclasses import asdict
from typing import Any

import click
from rich.text import Text

from mixcore._problems import closest
from mixcore.cli import show
from mixcore.errors import ArgumentError
from mixcore.methods import MethodInfo, methods


@click.command("methods", epilog="\b\nExample:\n  mixcore methods\n  mixcore methods schedule\n")
@click.argument("name", required=False)
@click.option("--json", "json_", is_flag=True, help="Print the facts as JSON.")
def command(name: str | None, json_: bool) -> None:
    """List the methods that choose weights; with a NAME, say what that one does and takes."""
    found = methods()
    if name is not None:
        if name not in found:
            raise ArgumentError(
                f"no method is named {name!r}{closest(name, list(found))}; known: "
                f"{', '.join(found)}"
            )
        _one(found[name], json_)
    elif json_:
        show.as_json({"methods": [facts(m) for m in found.values()]})
    else:
        heads = ["name", "family", "every", "needs", "paper"]
        rows = [
            [m.name, m.family, _every(m), ", ".join(m.needs) or "-", m.paper]
            for m in found.values()
        ]
        show.console().print(show.table("Methods", heads, rows))


def _one(info: MethodInfo, json_: bool) -> None:
    if json_:
        show.as_json(facts(info))
        return
    options = [f"{o} (required)" for o in info.required]
    options += [f"{o}={d!r}" for o, d in info.options.items()]
    lines = [
        f"{info.name}: {info.family}; {info.paper}",
        f"needs: {', '.join(info.needs) or 'no signals'}",
        f"steps between updates: {_every(info)}",
        f"cost: {info.cost}",
        f"options: {', '.join(options) or 'none'}",
        "",
        info.doc,
    ]
    show.console().print(Text("\n".join(lines)))


def facts(info: MethodInfo) -> dict[str, Any]:
    """A method's facts in JSON's types."""
    return asdict(info) | {"options": {o: _shown(d) for o, d in info.options.items()}}


def _shown(default: Any) -> Any:
    plain = default is None or isinstance(default, (bool, int, float, str))
    return default if plain else repr(default)


def _every(info: MethodInfo) -> str:
    return "-" if info.update_every is None else str(info.update_every)
