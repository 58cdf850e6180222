"""Prove from a steered run's logs that its decisions are sound: agreed on, in time, never lost.

Every rank writes down what its ledger took in, and where an update was due and nothing changed.
The ledger's own file is read here as lines of JSON; the package that wrote it is not asked.

A decision may be made twice: what was decided after the checkpoint that a successor starts from is
put out of force, on the record, and made anew.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from history import Attempt, Check, History, in_force

WHOLE = 1 << 62  # what the shares of a decision sum to
UNDOES = "mixcore.controller"  # author of the decision that puts others out of force
TAIL = len(',"hash":""}') + 64
FACTS = ("at", "shares", "replace_future", "reason", "author")


def check_all(history: History, ledger: Path) -> list[Check]:
    """Run every check of the decisions; none stops the others."""
    return [agreed(history), in_time(history), carried_over(history), recorded(history, ledger)]


def agreed(history: History) -> Check:
    """All ranks logged the same at every update that was due; a kill may cut the last one off."""
    bad, updates = [], 0
    for attempt in history.attempts:
        longest = max(attempt.updates.values(), key=len)
        updates += len(longest)
        for rank, lines in sorted(attempt.updates.items()):
            where = f"attempt {attempt.number} rank {rank}"
            if lines != longest[: len(lines)]:
                first = next(i for i, line in enumerate(lines) if line != longest[i])
                bad.append(f"{where} differs after step {lines[first]['step']}")
            wanted = due(history, attempt, rank)
            made = [int(line["step"]) for line in lines]
            killed = attempt is not history.attempts[-1]
            cut = bool(killed and wanted) and wanted[-1] == attempt.ranks[rank][-1]["step"] + 1
            if made != wanted and not (cut and made == wanted[:-1]):
                odd = sorted(set(made) ^ set(wanted))
                bad.append(f"{where}: missing, or not due, after steps {odd[:3]}")
    detail = f"{updates} updates, one every {history.start['update_every']} steps"
    return Check("decisions equal on all ranks", not bad, "; ".join(bad[:3]) or detail)


def due(history: History, attempt: Attempt, rank: int) -> list[int]:
    """Steps after which this rank had to decide."""
    lines, every = attempt.ranks[rank], int(history.start["update_every"])
    done = lines[-1]["step"] + 1 if lines else attempt.first_step
    return [step for step in range(attempt.first_step + 1, done + 1) if step % every == 0]


def in_time(history: History) -> Check:
    """Each decision takes effect where the declared lag says, with shares that make a whole."""
    batch, lag = int(history.start["batch_size"]), int(history.start["lag_steps"])
    bad, made = [], 0
    for attempt in history.attempts:
        if (int(attempt.start["lag_steps"]), int(attempt.start["batch_size"])) != (lag, batch):
            bad.append(f"attempt {attempt.number} has another lag or batch")
        for line in attempt.decisions:
            made += 1
            where = f"decision after step {line['step']}"
            if line["at"] != (line["step"] + lag) * batch:
                bad.append(f"{where} in force at {line['at']}, not lag_steps={lag} later")
            bad += [f"{where}: {wrong}" for wrong in wrong_shares(history, line)]
    for line in history.record:
        bad += [f"at {line['at']}: {wrong}" for wrong in wrong_shares(history, line)]
    detail = f"{made} made, each in force {lag} steps later"
    return Check("decisions in force as declared", not bad, "; ".join(bad[:3]) or detail)


def wrong_shares(history: History, line: dict[str, Any]) -> Iterator[str]:
    """Say what is wrong with a decision's shares and weights."""
    shares = line["shares"]
    if len(shares) != len(history.names) or min(shares) < 0 or sum(shares) != WHOLE:
        yield "shares are not one a domain that sum to 2^62"
    elif line["weights"] != [share / WHOLE for share in shares]:
        yield "weights are not the shares"


def carried_over(history: History) -> Check:
    """A resumed attempt has all decisions of those before it; only those of its past are in force.

    What the killed attempt decided after the checkpoint stays on the record and is undone there.
    """
    bad, undone, again = [], 0, 0
    if history.attempts[0].start["decisions"]:
        bad.append("the first attempt began with decisions made before it")
    for before, after in zip(history.attempts, history.attempts[1:], strict=False):
        old, new = facts(before.record), facts(after.start["decisions"])
        where = f"attempt {after.number}"
        if new[: len(old)] != old:
            bad.append(f"{where} lacks a decision of attempt {before.number}, or has another")
            continue
        # The ledger's file is ahead of the log by one decision at most.
        if sum(fact["author"] != UNDOES for fact in new[len(old) :]) > 1:
            bad.append(f"{where} has decisions that nobody logged")
        last = (after.first_step + after.start["lag_steps"]) * after.start["batch_size"]
        late = [d for d in in_force(new) if d["at"] > last]
        bad += [f"{where}: still in force at {d['at']}" for d in late if d["author"] != UNDOES]
        gone = [d for d in in_force(old) if d["at"] > last]
        made = {d["at"]: d["shares"] for d in after.decisions}
        undone += len(gone)
        again += sum(made.get(d["at"]) == d["shares"] for d in gone)
    detail = f"{undone} lost with a kill, undone on the record, {again} of them made anew alike"
    if len(history.attempts) < 2:
        detail = "no attempt was resumed"
    return Check("decisions carried over", not bad, "; ".join(bad[:3]) or detail)


def facts(record: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what the ledger knows of each decision."""
    return [{name: line[name] for name in FACTS} for line in record]


def recorded(history: History, path: Path) -> Check:
    """The ledger's file is unbroken and holds exactly the decisions of the log, in their order."""
    name = "ledger's record = log"
    try:
        lines = read_ledger(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Check(name, False, f"{path.name}: {error}")
    first, *later = lines[1:]
    theirs = [
        {
            "at": line["position"],
            "shares": line.get("shares"),
            "replace_future": line.get("replace_future", False),
            "reason": line["reason"],
            "author": line["author"],
        }
        for line in later
    ]
    mine = facts(history.record)
    if begins(first) != begins_in_log(history):
        return Check(name, False, "it begins with other domains or weights than the log")
    if theirs != mine:
        both = zip(mine, theirs, strict=False)
        odd = next((i for i, (m, t) in enumerate(both) if m != t), min(len(mine), len(theirs)))
        return Check(
            name, False, f"{len(theirs)} decisions there, {len(mine)} in the log: see no. {odd + 1}"
        )
    return Check(name, True, f"{len(mine)} decisions after the start, chain of hashes unbroken")


def begins(first: dict[str, Any]) -> list[tuple[str, int, float]]:
    """Return each domain's name, size and rounded weight in a ledger's first decision."""
    pairs = zip(first["add"], first["shares"], strict=True)
    return [(domain["name"], domain["size"], round(share / WHOLE, 9)) for domain, share in pairs]


def begins_in_log(history: History) -> list[tuple[str, int, float]]:
    """Return the same as the trainer logged it."""
    weights = [round(weight, 9) for weight in history.start["anchors"][0][1]]
    return list(zip(history.names, history.sizes, weights, strict=True))


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """Read the header and the decisions of a ledger's file; ValueError if a hash does not fit."""
    lines, previous = [], ""
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        found = json.loads(line)
        content = previous.encode() + line[:-TAIL] + b"}"
        if found["hash"] != hashlib.sha256(content).hexdigest():
            raise ValueError(f"line {number} was changed after it was written")
        previous = found["hash"]
        lines.append(found)
    if len(lines) < 2:
        raise ValueError("it holds no decision")
    return lines
