"""Which methods can steer the demo, and their options at its size.

>>> refuse("aioli", ["python", "web"], steps=1200)
"--method aioli needs the signal val_loss, which the demo does not measure: ..."
"""

from typing import Any

import mixcore

MEASURED = ("loss_sum", "tokens", "draws", "total_draws", "weights")


def options(name: str, num_domains: int, steps: int, every: int) -> dict[str, Any]:
    """Return a method's options; periods that are for long runs are put in proportion to `steps`.

    ODM's variant is that of its authors' program, whose weights move further than the paper's.
    """
    known: dict[str, dict[str, Any]] = {
        "odm": {"variant": "code", "warmup_steps": steps // 100},
        "ado": {
            "initial": [1.0] * num_domains,
            "start_step": steps // 5,
            "ignore_steps": 2 * every,
            "update_interval": 4 * every,
            "subsample": 1,
            "min_points": 5,
            "smooth_window": 5,
        },
        "toremi": {"variant": "code", "stage_step": steps * 7 // 8},
    }
    return known.get(name, {})


def refuse(name: str, domains: list[str], steps: int) -> str | None:
    """Say in one line why this method cannot steer the demo, or return None: it can."""
    try:
        method = mixcore.method(
            name,
            domains=[mixcore.Domain(d, size=1) for d in domains],
            **options(name, len(domains), steps, every=1),
        )
    except (ValueError, TypeError, ImportError) as error:
        return f"--method {name}: {error}"
    if not method.dynamic:
        return f"--method {name} is static: there is nothing for it to steer"
    for need in method.needs:
        if need not in MEASURED:
            return (
                f"--method {name} needs the signal {need}, which the demo does not measure: it "
                f"has training losses only"
            )
    return None
