"""Packages made of strings, that a test imports in place of Megatron."""

import importlib
import sys
from pathlib import Path

from megatron_patch import engine
from megatron_patch.rows import Row, Table

MODULES = {
    "stubtron/__init__.py": "",
    "stubtron/core/__init__.py": "__version__ = '1.2.3'\n",
    "stubtron/core/blend.py": """
        class Blend:
            def __init__(self, datasets, weights, size):
                self.weights = weights
            def kind(self):
                return 'blend'
    """,
    "stubtron/core/builder.py": """
        from stubtron.core.blend import Blend
        class Builder:
            def build(self, names, sizes=None):
                return Blend(names, [1.0] * len(names), 10)
            @staticmethod
            def measure(name, length):
                return length
            @classmethod
            def make(cls, name):
                return cls.__name__ + name
            limit = 5
    """,
    "stubtron/training/__init__.py": "from stubtron.training.training import train\n",
    "stubtron/training/samplers.py": """
        def loader(dataset, consumed, extra=None):
            return ['stock', dataset, consumed]
    """,
    "stubtron/training/training.py": """
        from stubtron.training.samplers import loader
        def train(steps, *, seed=1):
            return loader('train', steps)
    """,
    "stubtron/late.py": "from stubtron.training.samplers import loader\n",
}


class Stubs:
    """The stub packages in a folder that is on the path; everything is forgotten at the end."""

    def __init__(self, root: Path, monkeypatch, modules: dict[str, str] = MODULES) -> None:
        self.root = root
        self.tops = {name.partition("/")[0] for name in modules}
        for name in self.imported():  # the real ones, if other tests have imported them
            monkeypatch.delitem(sys.modules, name)
        self.write(modules)
        monkeypatch.syspath_prepend(root)

    def imported(self) -> list[str]:
        return [m for m in sys.modules if m.partition(".")[0] in self.tops]

    def write(self, files: dict[str, str]) -> None:
        for name, text in files.items():
            lines = text.splitlines()
            indent = min((len(x) - len(x.lstrip()) for x in lines if x.strip()), default=0)
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(x[indent:] for x in lines) + "\n")
        importlib.invalidate_caches()

    def load(self, name: str):
        return importlib.import_module(f"stubtron.{name}")

    def forget(self) -> None:
        if engine.patches():
            engine.undo()
        for name in self.imported():
            del sys.modules[name]


def louder(original):
    """A wrapper whose replacement says that it is one."""

    def replacement(*args, **kwargs):
        return ["patched", original(*args, **kwargs)]

    return replacement


def subclass(original):
    class Replacement(original):
        def kind(self):
            return "patched " + super().kind()

    return Replacement


BLEND = Row(
    "stubtron.core.builder:Blend", subclass, ("datasets", "weights"), "a blend", only_here=True
)
BUILD = Row("stubtron.core.builder:Builder.build", louder, ("self", "names"), "a method")
LOADER = Row(
    "stubtron.training.training:loader", louder, ("dataset", "consumed"), "a loader", "training"
)


def table(*rows: Row) -> Table:
    groups = {"dataset": "stubtron.core", "training": "stubtron.training"}
    return Table("Stubtron", "stubtron.core", groups, rows)
