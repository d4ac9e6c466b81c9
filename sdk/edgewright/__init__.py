"""Takes a trained PyTorch model to a verified, signed artifact.

    small    = ew.compress(model, recipe, data=data, teacher=teacher)
    artifact = ew.export(small, target="x86-avx2", calibration=data.train, out="model.ew")
    report   = ew.verify(artifact, reference=small, data=samples)
    release  = ew.publish(artifact, report, repository="repo/", version="1.0.0")

Names load on first use, so that `import edgewright` alone imports neither torch nor onnx.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgewright import digits
    from edgewright.checks import Check
    from edgewright.comparing import Comparison, compare
    from edgewright.compression import compress
    from edgewright.data import Data
    from edgewright.distillation import distill
    from edgewright.errors import (
        CompressError,
        DataError,
        ExportError,
        PublishError,
        RecipeError,
        SdkError,
        SearchError,
        SideEnvironmentError,
        VerifyError,
    )
    from edgewright.exporting import export
    from edgewright.fidelity import Fidelity
    from edgewright.float_onnx import OnnxFile, export_onnx
    from edgewright.latency import Latency, measure
    from edgewright.layer_sensitivity import LayerSensitivity, Sensitivity, sensitivity
    from edgewright.litert.convert import LiteRtModel, export_litert
    from edgewright.models import load_model, save_model
    from edgewright.progress import OnProgress, Progress
    from edgewright.publishing import publish
    from edgewright.recipe import (
        Distill,
        Finetune,
        LayerLoss,
        Progressive,
        Prune,
        Qat,
        Quantize,
        Recipe,
        Training,
    )
    from edgewright.search_budgets import Budget
    from edgewright.search_pareto import SearchReport
    from edgewright.searching import search
    from edgewright.sides import Side
    from edgewright.statistics import sqnr_db, wilson_interval
    from edgewright.training import evaluate, train
    from edgewright.verification import verify
    from edgewright.verification_report import VerificationReport
    from edgewright_device import Artifact, ArtifactError, Runner, Target, detect, target_names

__all__ = [
    "Artifact",
    "ArtifactError",
    "Budget",
    "Check",
    "Comparison",
    "CompressError",
    "Data",
    "DataError",
    "Distill",
    "ExportError",
    "Fidelity",
    "Finetune",
    "Latency",
    "LayerLoss",
    "LayerSensitivity",
    "LiteRtModel",
    "OnProgress",
    "OnnxFile",
    "Progress",
    "Progressive",
    "Prune",
    "PublishError",
    "Qat",
    "Quantize",
    "Recipe",
    "RecipeError",
    "Runner",
    "SdkError",
    "SearchError",
    "SearchReport",
    "Sensitivity",
    "Side",
    "SideEnvironmentError",
    "Target",
    "Training",
    "VerificationReport",
    "VerifyError",
    "compare",
    "compress",
    "detect",
    "digits",
    "distill",
    "evaluate",
    "export",
    "export_litert",
    "export_onnx",
    "load_model",
    "measure",
    "publish",
    "save_model",
    "search",
    "sensitivity",
    "sqnr_db",
    "target_names",
    "train",
    "verify",
    "wilson_interval",
]

_HOMES = {
    "checks": ("Check",),
    "comparing": ("Comparison", "compare"),
    "compression": ("compress",),
    "data": ("Data",),
    "distillation": ("distill",),
    "errors": (
        "CompressError",
        "DataError",
        "ExportError",
        "PublishError",
        "RecipeError",
        "SdkError",
        "SearchError",
        "SideEnvironmentError",
        "VerifyError",
    ),
    "exporting": ("export",),
    "fidelity": ("Fidelity",),
    "float_onnx": ("OnnxFile", "export_onnx"),
    "latency": ("Latency", "measure"),
    "layer_sensitivity": ("LayerSensitivity", "Sensitivity", "sensitivity"),
    "litert.convert": ("LiteRtModel", "export_litert"),
    "models": ("load_model", "save_model"),
    "progress": ("OnProgress", "Progress"),
    "publishing": ("publish",),
    "recipe": (
        "Distill",
        "Finetune",
        "LayerLoss",
        "Progressive",
        "Prune",
        "Qat",
        "Quantize",
        "Recipe",
        "Training",
    ),
    "search_budgets": ("Budget",),
    "search_pareto": ("SearchReport",),
    "searching": ("search",),
    "sides": ("Side",),
    "statistics": ("sqnr_db", "wilson_interval"),
    "training": ("evaluate", "train"),
    "verification": ("verify",),
    "verification_report": ("VerificationReport",),
}
_HOME_OF = {name: f"edgewright.{module}" for module, names in _HOMES.items() for name in names}
_HOME_OF |= dict.fromkeys(
    ("Artifact", "ArtifactError", "Runner", "Target", "detect", "target_names"), "edgewright_device"
)


def __getattr__(name: str) -> Any:
    if name == "digits":
        return import_module("edgewright.digits")
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value  # over the submodule of the same name that the import just bound
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
