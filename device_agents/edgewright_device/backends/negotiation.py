"""Negotiation: which execution provider of ONNX Runtime runs a model here, and why those before it do not."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewright_device.errors import RunnerError
from edgewright_device.fitting import fitting_form
from edgewright_device.onnx_file import OnnxFile
from edgewright_device.provider import CPU, SUFFIX, Choice

SHOWN = 4
RECORD_ASSIGNMENT = "session.record_ep_graph_assignment_info"


@dataclass(frozen=True, slots=True, kw_only=True)
class Negotiated:
    """What came of it.

    Attributes:
        provider: The one that runs the model, as `str(Choice)` has it: "OpenVINO:NPU".
        file: What it runs: "model.onnx", or another form of the same model.
        refused: Those asked for before it, and why each does not run it: "QNN: not installed: pip install …".
        nodes: How many nodes of the loaded graph, after ONNX Runtime's fusions, it runs; 0 where this version
            cannot say it.
        left: The nodes that others run, each with the provider: "CPU: Softmax 'softmax_1'".
        fixed_batch: Whether it takes one sample at a time.
    """

    provider: str
    file: str
    refused: tuple[str, ...] = ()
    nodes: int = 0
    left: tuple[str, ...] = ()
    fixed_batch: bool = False

    @property
    def text(self) -> str:
        """All of it in one line, for people."""
        text = self.provider
        if self.left:
            more = ", …" if len(self.left) > SHOWN else ""
            text += f" ({self.nodes} of {self.nodes + len(self.left)} nodes; others: "
            text += f"{', '.join(self.left[:SHOWN])}{more})"
        return text + "".join(f"; not {why}" for why in self.refused)


def negotiate(
    onnxruntime: Any,
    folder: Path,
    models: Mapping[str, OnnxFile],
    wanted: Sequence[Choice],
    *,
    threads: int = 1,
    cache: Path | None = None,
) -> tuple[Any, Negotiated]:
    """Opens a session on the first provider that is here, takes the model, and takes some of its nodes.

    Args:
        onnxruntime: The module.
        folder: Where the models' files are.
        models: The forms of the model by their files' names, the plain one first.
        wanted: In order of preference. With the CPU's among them there is always one that runs.
        threads: Of a session.
        cache: Where providers keep what they compile, by model; None keeps nothing.

    Returns:
        The session, and what came of the negotiation.

    Raises:
        RunnerError: None of them runs it; each is named with its reason.
    """
    refused: list[str] = []
    for place, choice in enumerate(wanted):
        name, reason = "", missing(onnxruntime, choice)
        if not reason:
            name, reason = fitting_form(models, choice)
        if not reason:
            try:
                session = _session(onnxruntime, folder / name, models[name], wanted[place:], threads, cache)
            except Exception as error:  # its exceptions have no common base of their own
                reason = " ".join(str(error).split())
                if choice.provider.name == CPU:
                    raise RunnerError(f"{folder / name}: ONNX Runtime cannot load it ({reason})") from error
            else:
                taken, left = _assigned(session, choice.provider.name)
                if choice.provider.name not in session.get_providers():
                    reason = "ONNX Runtime could not start it; a library or driver that it needs is missing"
                elif left and not taken:
                    reason = "it takes none of the nodes"
                else:
                    return session, Negotiated(
                        provider=str(choice),
                        file=name,
                        refused=tuple(refused),
                        nodes=taken,
                        left=left,
                        fixed_batch=choice.fixed_shapes,
                    )
        refused.append(f"{choice}: {reason}")
    reasons = ". ".join(refused)
    raise RunnerError(f"{folder}: no provider that was asked for runs it. {reasons}. Or add CPU as the last")


def missing(onnxruntime: Any, choice: Choice) -> str:
    """Why a provider is not here, with what to install; empty if it is. A plugin is registered on the way."""
    provider = choice.provider
    if provider.name in onnxruntime.get_available_providers():
        return _device_missing(onnxruntime, choice)
    if provider.plugin:
        try:
            plugin = importlib.import_module(provider.plugin)
        except ImportError:
            return f"not installed: pip install {provider.package}"
        try:
            onnxruntime.register_execution_provider_library(provider.name, plugin.get_library_path())
        except (
            Exception
        ) as error:  # as above; also an ONNX Runtime without plugins, and a library that lacks another
            return f"{provider.package} does not load in ONNX Runtime {onnxruntime.__version__} ({error})"
        return _device_missing(onnxruntime, choice)
    if provider.package:
        return f"not installed: pip install {provider.package}, in place of the ONNX Runtime that is here"
    return "not in this ONNX Runtime, and in no package: build ONNX Runtime with it"


def _devices(onnxruntime: Any, choice: Choice) -> list[Any]:
    """What a plugin offers for a choice; an empty list for a provider that is built in."""
    if not hasattr(onnxruntime, "get_ep_devices"):
        return []
    found = [d for d in onnxruntime.get_ep_devices() if d.ep_name == choice.provider.name]
    named = [d for d in found if "ov_device" in d.ep_metadata]
    return [d for d in named if d.ep_metadata["ov_device"].split(".")[0] == choice.device] if named else found


def _device_missing(onnxruntime: Any, choice: Choice) -> str:
    if not hasattr(onnxruntime, "get_ep_devices"):
        return ""
    offered = [d for d in onnxruntime.get_ep_devices() if d.ep_name == choice.provider.name]
    if offered and not _devices(onnxruntime, choice):
        has = ", ".join(sorted({d.ep_metadata.get("ov_device", d.ep_name) for d in offered}))
        return f"this machine has no {choice.device} for it; it offers {has}"
    return ""


def provider_options(choice: Choice, *, threads: int = 1, cache: Path | None = None) -> dict[str, str]:
    """The options of a provider's session: the artifact's own integers, floats as floats, engines kept.

    Half precision is off everywhere: a model was verified with floats of 32 bits where it has no integers.
    """
    name, kept = choice.provider.short, "" if cache is None else str(cache)
    if name == "Tensorrt":
        options = {"device_id": "0", "trt_int8_enable": "1", "trt_fp16_enable": "0"}
        if kept:
            options |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": kept}
            options |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": kept}
        return options
    if name == "QNN":
        return {"backend_type": choice.device, "enable_htp_fp16_precision": "0"}
    if name == "OpenVINO":
        config: dict[str, str] = {"EXECUTION_MODE_HINT": "ACCURACY", "PERFORMANCE_HINT": "LATENCY"}
        if choice.device == "CPU":
            config["INFERENCE_NUM_THREADS"] = str(threads)
        if kept:
            config["CACHE_DIR"] = kept
        return {"device_type": choice.device, "load_config": json.dumps({choice.device: config})}
    if name == "MIGraphX":  # integers come from the file, so its own calibration stays off
        return {"device_id": "0", "migraphx_fp16_enable": "0", "migraphx_int8_enable": "0"}
    if name == "CANN":
        return {"device_id": "0", "enable_cann_graph": "1"}
    if name == "Xnnpack":
        return {"intra_op_num_threads": str(threads)}
    return {"device_id": "0"} if name == "CUDA" else {}


def _session(
    onnxruntime: Any,
    model: Path,
    file: OnnxFile,
    choices: Sequence[Choice],
    threads: int,
    cache: Path | None,
) -> Any:
    """A session on the first choice, which hands what it does not take to the next ones that are built in."""
    first = choices[0]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1 if first.provider.short == "Xnnpack" else threads
    options.add_session_config_entry("session.x64quantprecision", "1")
    if first.provider.name == CPU:
        return onnxruntime.InferenceSession(str(model), options, providers=[CPU])
    options.add_session_config_entry(RECORD_ASSIGNMENT, "1")
    if first.provider.short == "Xnnpack":  # its threads and those of ONNX Runtime would wait for one another
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if first.fixed_shapes:
        for sizes in file.inputs.values():
            if sizes and isinstance(sizes[0], str) and sizes[0]:
                options.add_free_dimension_override_by_name(sizes[0], 1)
    kept = None
    if cache is not None:
        kept = cache / f"{first.provider.short.lower()}-{first.device.lower() or 'device'}"
        kept.mkdir(parents=True, exist_ok=True)
    if first.provider.short == "QNN" and kept is not None:
        compiled = kept / "model_ctx.onnx"
        if compiled.is_file():
            model = compiled
        else:
            options.add_session_config_entry("ep.context_enable", "1")
            options.add_session_config_entry("ep.context_file_path", str(compiled))
    settings = provider_options(first, threads=threads, cache=kept)
    if devices := _devices(onnxruntime, first):
        if first.provider.short == "OpenVINO":
            del settings["device_type"]  # the device says it
        options.add_provider_for_devices(devices[:1], settings)
        return onnxruntime.InferenceSession(str(model), options)
    here = onnxruntime.get_available_providers()
    built_in = [first, *(c for c in choices[1:] if c.provider.name in here and c.provider.name != CPU)]
    providers = [(c.provider.name, provider_options(c, threads=threads, cache=kept)) for c in built_in]
    return onnxruntime.InferenceSession(str(model), options, providers=[*providers, CPU])


def _assigned(session: Any, provider: str) -> tuple[int, tuple[str, ...]]:
    """How many nodes a provider has taken, and those of others; nothing where it is not recorded."""
    ask = getattr(session, "get_provider_graph_assignment_info", None)
    try:
        parts = ask() if ask is not None else ()
    except Exception:  # as above; not recorded
        return 0, ()
    taken = sum(len(part.get_nodes()) for part in parts if part.ep_name == provider)
    left = tuple(
        f"{part.ep_name.removesuffix(SUFFIX)}: {node.op_type} {node.name!r}"
        for part in parts
        if part.ep_name != provider
        for node in part.get_nodes()
    )
    return taken, left
