"""Runs in the converter's own environment: a torch.export program becomes a .tflite file.

Reads a request as JSON on standard input, writes the answer to the file that its argument names; see
`edgewright.side_environment.run_script`. Imports nothing of edgewright.
"""

import json
import sys
from pathlib import Path
from typing import Any

import litert_torch
import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter

PROGRESS = "edgewright-progress: "


class Named(torch.nn.Module):
    """A program that takes its inputs and gives its outputs by name; signatures have these names then."""

    def __init__(self, program: torch.export.ExportedProgram, inputs: list[str], outputs: list[str]) -> None:
        super().__init__()
        self.program, self.inputs, self.outputs = program.module(), inputs, outputs

    def forward(self, **given: torch.Tensor) -> dict[str, torch.Tensor]:
        """Runs it."""
        results = self.program(*(given[name] for name in self.inputs))
        results = results if isinstance(results, tuple | list) else (results,)
        return dict(zip(self.outputs, results, strict=True))


def convert(request: dict[str, Any]) -> dict[str, Any]:
    """Converts a program, and compares each signature with torch.

    Args:
        request: "program", a .pt2 file; "out", the file to write; "inputs" and "outputs", names in order;
            "signatures", each with a name and the shapes of its inputs; "examples", .npz, samples by name.
    """
    model = Named(torch.export.load(request["program"]), request["inputs"], request["outputs"])
    with np.load(request["examples"], allow_pickle=False) as archive:
        examples = dict(archive)
    total = len(request["signatures"]) + 2
    converter, feeds = litert_torch.Converter(), {}
    for count, signature in enumerate(request["signatures"]):
        tell("litert: trace", count, total)
        feed = {n: fitted(examples[n], signature["shapes"][n]) for n in request["inputs"]}
        tensors = {n: torch.from_numpy(v) for n, v in feed.items()}
        try:
            with torch.no_grad():
                expected = {n: v.numpy() for n, v in model(**tensors).items()}
        except Exception as error:  # a model may raise anything
            return {"error": f"the model does not take the shapes {signature['shapes']}: {first_line(error)}"}
        feeds[signature["name"]] = feed, expected
        converter = converter.signature(signature["name"], model, (), tensors)
    tell("litert: convert", total - 2, total)
    try:
        made = converter.convert()
    except Exception as error:  # the converter raises many kinds
        return {"error": f"litert-torch cannot convert this model: {first_line(error)}"}
    made.export(request["out"])
    tell("litert: compare with torch", total - 1, total)
    interpreter = Interpreter(request["out"])
    found = [compared(interpreter, name, *each) for name, each in feeds.items()]
    tell("litert: compare with torch", total, total)
    return {"signatures": found}


def compared(
    interpreter: Interpreter, name: str, feed: dict[str, Any], expected: dict[str, Any]
) -> dict[str, Any]:
    """Names, types and shapes of a signature, and its largest error, relative to the largest output."""
    run = interpreter.get_signature_runner(name)
    details = run.get_input_details()
    got = run(**{n: v.astype(details[n]["dtype"]) for n, v in feed.items()})
    errors = [
        float(np.abs(got[n].astype(np.float64) - want).max() / max(np.abs(want).max(), 1e-30))
        for n, want in expected.items()
    ]
    ports = {"inputs": details, "outputs": run.get_output_details()}
    described = {
        key: {n: [np.dtype(d["dtype"]).name, [int(s) for s in d["shape"]]] for n, d in each.items()}
        for key, each in ports.items()
    }
    return {"name": name, "largest_error": max(errors), **described}


def fitted(samples: Any, shape: list[int]) -> Any:
    """Samples cut or repeated along each axis to a shape."""
    for axis, size in enumerate(shape):
        samples = np.take(samples, np.arange(size) % samples.shape[axis], axis)
    return np.ascontiguousarray(samples)


def first_line(error: BaseException) -> str:
    """What an error says first."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def tell(step: str, done: int, total: int) -> None:
    """Reports progress."""
    sys.stdout.write(f"{PROGRESS}{json.dumps([step, done, total])}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    answer = convert(json.load(sys.stdin))
    Path(sys.argv[1]).write_text(json.dumps(answer), "utf-8")
