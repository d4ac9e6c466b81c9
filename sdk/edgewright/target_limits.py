"""Target limits: `export` refuses what the target cannot run, with the layer and the remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgewright.errors import ExportError
from edgewright_device import CPU, SYMMETRIC, Target, fitting_form, read_onnx


def check_request(target: Target, backend: str, lengths: Sequence[int] | None) -> None:
    """Refuses, before any work, an engine that the target lacks, and free lengths where every size is fixed.

    Raises:
        ExportError: With what to ask for instead.
    """
    if lengths is not None and target.fixed_shapes:
        raise ExportError(
            f"target {target.name!r} wants every size fixed, and lengths leave that of sequences free; "
            f"export an artifact for each of {', '.join(map(str, lengths))}, without lengths"
        )
    if backend not in target.backends:
        raise ExportError(
            f"target {target.name!r} has no backend {backend!r}; choose from {', '.join(target.backends)}: "
            f"backend={target.backends[0]!r}, or --backend {target.backends[0]}"
        )


def check_memory(target: Target, weights_bytes: int, arena_bytes: int) -> None:
    """Refuses a model that is larger than the target's memory.

    Raises:
        ExportError: With both sizes.
    """
    needed = weights_bytes + arena_bytes
    if needed > target.memory_bytes:
        raise ExportError(
            f"the model needs {needed} bytes (weights and arena), target {target.name!r} has "
            f"{target.memory_bytes}; compress it further"
        )


def check_providers(target: Target, files: Mapping[str, bytes]) -> str:
    """Refuses a model that none of the target's providers takes, in any form.

    Args:
        target: What runs it, by ONNX Runtime.
        files: Of the artifact; "model.onnx", and "symmetric.onnx" if there is one.

    Returns:
        Which preferred providers do not take it, why, and what runs it instead; empty if the first takes it.

    Raises:
        ExportError: With the layer that the first of them refuses, and the remedy.
    """
    models = {n: read_onnx(files[n]) for n in ("model.onnx", SYMMETRIC) if n in files}
    refused: list[str] = []
    choices = target.choices()
    alone = all(c.provider.name != CPU for c in choices)  # what a provider lacks has no other place to run
    for choice in choices:
        fits, reason = fitting_form(models, choice, operators=alone)
        if fits:
            return f"{choice} runs it; not {'; not '.join(refused)}" if refused else ""
        refused.append(f"{choice}: {reason}")
    raise ExportError(f"target {target.name!r} cannot run it: {'; '.join(refused) or 'it has no provider'}")
