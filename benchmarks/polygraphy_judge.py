"""What Polygraphy says of pairs of outputs. Runs in an environment of its own, with polygraphy and numpy.

    python polygraphy_judge.py inputs SPEC.json OUT.npz   # its default inputs for a model
    python polygraphy_judge.py judge FOLDER OUT.json      # verdicts over all pairs in a folder

A pair is an .npz of `real.float.NAME` and `real.ENGINE.NAME`, outputs on real samples, and the same under
`default.` for its default inputs. It is alarmed by a pair where any engine's outputs do not pass.
"""

from __future__ import annotations

import itertools
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from polygraphy.common import TensorMetadata
from polygraphy.comparator import (
    Comparator,
    CosineSimilarityCompareFunc,
    DataLoader,
    IndicesCompareFunc,
    IterationResult,
    RunResults,
    SimpleCompareFunc,
    SnrCompareFunc,
)
from polygraphy.logger import G_LOGGER

warnings.simplefilter("ignore")


def settings() -> dict[str, tuple[str, Any]]:
    """By name: which inputs, and the comparison. None is tuned: powers of ten, and its own defaults."""
    found: dict[str, tuple[str, Any]] = {
        "default": ("default", SimpleCompareFunc()),
        "default, real inputs": ("real", SimpleCompareFunc()),
        "indices, real inputs": ("real", IndicesCompareFunc()),
        "cosine similarity, real inputs": ("real", CosineSimilarityCompareFunc()),
        "snr, real inputs": ("real", SnrCompareFunc()),
    }
    for statistic, tolerance in itertools.product(("mean", "median", "quantile", "max"), (1e-2, 1e-1)):
        compare = SimpleCompareFunc(check_error_stat=statistic, atol=tolerance, rtol=tolerance)
        found[f"{statistic}, atol and rtol {tolerance:g}, real inputs"] = ("real", compare)
    compare = SimpleCompareFunc(check_error_stat="mean", atol=1e-1, rtol=1e-1)
    found["mean, atol and rtol 0.1, default inputs"] = ("default", compare)
    return found


def alarmed(arrays: dict[str, Any], inputs: str, compare: Any) -> bool:
    """Whether any engine's outputs do not pass."""
    engines = {n.split(".", 2)[1] for n in arrays if n.startswith(f"{inputs}.") and ".float." not in n}

    def outputs(engine: str) -> RunResults:
        results = RunResults()
        for name in ("float", engine):
            start = f"{inputs}.{name}."
            found = {n.removeprefix(start): v for n, v in arrays.items() if n.startswith(start)}
            results.append((name, [IterationResult(found, runner_name=name)]))
        return results

    return any(not Comparator.compare_accuracy(outputs(e), compare_func=compare) for e in engines - {"float"})


def main() -> None:
    """Either of the two."""
    G_LOGGER.module_severity = G_LOGGER.CRITICAL
    if sys.argv[1] == "inputs":
        loader, metadata = DataLoader(), TensorMetadata()
        for name, dtype, shape in json.loads(Path(sys.argv[2]).read_text("utf-8")):
            metadata.add(name, np.dtype(dtype).type, (-1, *shape))
        loader.input_metadata = metadata
        np.savez(sys.argv[3], **next(iter(loader)))
        return
    compared = settings()
    verdicts = {}
    for path in sorted(Path(sys.argv[2]).glob("*.npz")):
        with np.load(path) as file:
            arrays = dict(file)
        verdicts[path.stem] = {n: alarmed(arrays, i, c) for n, (i, c) in compared.items()}
    Path(sys.argv[3]).write_text(json.dumps(verdicts), "utf-8")


if __name__ == "__main__":
    main()
