"""Seconds and memory of the commands with many domains: python bench/many_domains.py [65536]."""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from mixcore.indexed_writer import IndexedWriter


def main() -> None:
    """Time each command in a process of its own."""
    num = int(sys.argv[1]) if len(sys.argv) > 1 else 65_536
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights, sizes = random.dirichlet(np.ones(num)), random.integers(50, 5000, num)
        rows = zip(weights.tolist(), sizes.tolist(), strict=True)
        lines = [f"  - {{name: d{i}, size: {s}, weight: {w}}}" for i, (w, s) in enumerate(rows)]
        head = "batch_size: 4096\ntrain_samples: 40_960_000\ndomains:\n"
        (folder / "mix.yaml").write_text(head + "\n".join(lines) + "\n")
        with IndexedWriter(folder / "web", np.uint16) as corpus:
            for _ in range(4 * num):
                corpus.add_document(random.integers(0, 1000, 40))
        np.save(folder / "e.npy", random.normal(size=(4 * num, 8)).astype(np.float32))
        for command in (
            "plan mix.yaml --json",
            "sweep plan mix.yaml -o sweep --draw dirichlet --runs 4 --command 'true {mix}'",
            f"partition web -o parts --k {num} --embeddings e.npy --tokens-per-sample 16 "
            f"--fit-documents {4 * num} --json",
            "plan parts/mix.yaml --json",
        ):
            start = time.perf_counter()
            subprocess.run(
                f"{sys.executable} -m mixcore.cli {command} > /dev/null",
                shell=True,
                check=True,
                cwd=folder,
            )
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
            print(f"{time.perf_counter() - start:8.1f} s, peak so far {peak:.2f} GB: {command}")


if __name__ == "__main__":
    main()
