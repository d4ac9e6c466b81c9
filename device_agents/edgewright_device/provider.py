"""Providers: what each execution provider of ONNX Runtime takes, as data.

A provider is ONNX Runtime's word for an engine behind it, such as TensorRT. This file says which integers
each takes; `backends/negotiation.py` chooses one of those that are installed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field

CPU = "CPUExecutionProvider"
SUFFIX = "ExecutionProvider"


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """One execution provider, by its documentation.

    Attributes:
        name: As ONNX Runtime says it, "QNNExecutionProvider".
        package: The PyPI package that has it, of the versions that were there in November 2026; empty if none
            has, and ONNX Runtime must be built with it.
        plugin: The Python module of a package that adds the provider to the ONNX Runtime that is there
            already; empty where the package brings an ONNX Runtime of its own.
        activations: Types of activations that it computes in, as QuantizeLinear gives them; empty for any.
        weights: Types of weights, as DequantizeLinear reads them; empty for any.
        symmetric: Whether every zero point must be 0.
        per_channel: Whether weights may have one scale per channel; activations have one scale in any case.
        devices: What it can run on, where it can be told, the usual first.
        fixed_shapes: The devices for which every size must be known when a model is loaded, that of the batch
            included; "" where it has but one.
        operators: ONNX operators that it takes; None where the documentation has no list, or where others go
            to the CPU without harm.
        note: What else one must know.
        sources: Where that is written.
    """

    name: str
    package: str = ""
    plugin: str = ""
    activations: frozenset[str] = frozenset()
    weights: frozenset[str] = frozenset()
    symmetric: bool = False
    per_channel: bool = True
    devices: tuple[str, ...] = ("",)
    fixed_shapes: frozenset[str] = frozenset()
    operators: frozenset[str] | None = field(default=None, repr=False)
    note: str = ""
    sources: tuple[str, ...] = field(default=(), repr=False)

    @property
    def short(self) -> str:
        """The name without "ExecutionProvider"."""
        return self.name.removesuffix(SUFFIX)

    @property
    def integers(self) -> str:
        """Activations and weights in short: "u8 u16 / s8 u8", "any"."""

        def named(types: Iterable[str]) -> str:
            return " ".join(sorted(t[0].replace("i", "s") + t.lstrip("uint") for t in types)) or "any"

        if not self.activations and not self.weights:
            return "any"
        zeros = ", zero point 0" if self.symmetric else ""
        return f"{named(self.activations)} / {named(self.weights)}{zeros}"


_ORT = "https://onnxruntime.ai/docs/execution-providers"
_ASCEND = "https://www.hiascend.com/document/detail/en/canncommercial"
_QUANTIZATION = "https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html"

# From the page's list of supported ONNX operators, and Reshape, which the page leaves out and its source has
# (core/providers/qnn/builder/op_builder_factory.cc).
_QNN = """
Abs Add And ArgMax ArgMin Asin Atan AveragePool BatchNormalization Cast Clip Concat Conv ConvTranspose
Cos DepthToSpace DequantizeLinear Div Elu Equal Exp Expand Flatten Floor Gather Gelu Gemm
GlobalAveragePool Greater GreaterOrEqual GridSample HardSwish InstanceNormalization LRN
LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization MatMul Max MaxPool Min Mul
Neg Not Or PRelu Pad Pow QuantizeLinear ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Relu Reshape
Resize Round Sigmoid Sign Sin Slice Softmax SpaceToDepth Split Sqrt Squeeze Sub Tanh Tile TopK Transpose
Unsqueeze Where
"""
_RKNPU = """
Add Mul Conv QLinearConv Gemm Softmax AveragePool GlobalAveragePool MaxPool GlobalMaxPool LeakyRelu
Concat BatchNormalization Reshape Flatten Squeeze Unsqueeze Transpose Relu Sub DequantizeLinear Clip
"""

PROVIDERS: dict[str, Provider] = {
    p.name: p
    for p in (
        Provider(
            name=CPU,
            package="onnxruntime",
            note="the kernels that every ONNX Runtime has; exact integers on every path that is chosen here",
            sources=(_QUANTIZATION,),
        ),
        Provider(
            name="TensorrtExecutionProvider",
            package="onnxruntime-gpu",
            activations=frozenset({"int8"}),
            weights=frozenset({"int8", "int4"}),
            symmetric=True,
            note="engines are built for one GPU and one version of TensorRT, and kept beside the artifact",
            sources=(
                "https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html",
                f"{_ORT}/TensorRT-ExecutionProvider.html",
            ),
        ),
        Provider(
            name="CUDAExecutionProvider",
            package="onnxruntime-gpu",
            note="computes a QDQ model in floating point; integers are TensorRT's",
            sources=(_QUANTIZATION, f"{_ORT}/CUDA-ExecutionProvider.html"),
        ),
        Provider(
            name="QNNExecutionProvider",
            package="onnxruntime-qnn",
            plugin="onnxruntime_qnn",
            activations=frozenset({"uint8", "uint16"}),
            weights=frozenset({"int8", "uint8"}),
            devices=("htp", "gpu", "cpu"),
            fixed_shapes=frozenset({"htp", "gpu", "cpu"}),
            operators=frozenset(_QNN.split()),
            note="the HTP runs quantized models alone; on x86-64 its package has a library that acts as one",
            sources=(f"{_ORT}/QNN-ExecutionProvider.html",),
        ),
        Provider(
            name="OpenVINOExecutionProvider",
            package="onnxruntime-ep-openvino",
            plugin="onnxruntime_ep_openvino",
            activations=frozenset({"uint8", "int8"}),
            weights=frozenset({"int8", "uint8"}),
            devices=("CPU", "GPU", "NPU"),
            fixed_shapes=frozenset({"NPU"}),
            note="on a CPU without VNNI its sums of 16 bits can overflow: `ew.overflow_risks` says where",
            sources=(
                f"{_ORT}/OpenVINO-ExecutionProvider.html",
                "https://docs.openvino.ai/2025/documentation/compatibility-and-support/supported-devices.html",
            ),
        ),
        Provider(
            name="MIGraphXExecutionProvider",
            package="onnxruntime-migraphx",
            activations=frozenset({"uint8", "int8"}),
            weights=frozenset({"int8", "uint8"}),
            note="needs ROCm",
            sources=(
                f"{_ORT}/MIGraphX-ExecutionProvider.html",
                "https://rocm.docs.amd.com/projects/AMDMIGraphX/en/docs-7.2.2/dev/onnx_operators.html",
            ),
        ),
        Provider(
            name="CANNExecutionProvider",
            package="onnxruntime-cann",
            activations=frozenset({"int8"}),
            weights=frozenset({"int8"}),
            symmetric=True,
            note="needs CANN; what it has no kernel for goes to the CPU",
            sources=(
                f"{_ORT}/community-maintained/CANN-ExecutionProvider.html",
                f"{_ASCEND}/800/devaids/atc/atlasatc_16_0117.html",
            ),
        ),
        Provider(
            name="RknpuExecutionProvider",
            activations=frozenset({"uint8"}),
            weights=frozenset({"uint8"}),
            per_channel=False,
            operators=frozenset(_RKNPU.split()),
            note="for the RK1808 alone; later chips are reached by Rockchip's own toolkit",
            sources=(
                f"{_ORT}/community-maintained/RKNPU-ExecutionProvider.html",
                "https://github.com/microsoft/onnxruntime/pull/3609",
            ),
        ),
        Provider(
            name="XnnpackExecutionProvider",
            activations=frozenset({"uint8", "int8"}),
            weights=frozenset({"int8", "uint8"}),
            note="has threads of its own; convolutions of two dimensions, products of matrices, pools",
            sources=(f"{_ORT}/Xnnpack-ExecutionProvider.html",),
        ),
        Provider(
            name="NnapiExecutionProvider",
            activations=frozenset({"uint8", "int8"}),
            weights=frozenset({"int8", "uint8"}),
            note="Android's own; drivers differ from phone to phone",
            sources=(f"{_ORT}/NNAPI-ExecutionProvider.html",),
        ),
        Provider(
            name="ACLExecutionProvider",
            note="Arm Compute Library, on Armv8 cores",
            sources=(f"{_ORT}/community-maintained/ACL-ExecutionProvider.html",),
        ),
    )
}
# ArmNN is not among them: ONNX Runtime removed that provider (https://github.com/microsoft/onnxruntime/pull/27447).


@dataclass(frozen=True, slots=True)
class Choice:
    """A provider, and the device it shall run on; "" if it has but one.

    `str` gives it as one text, "OpenVINO:NPU"; the device is left out where it is the usual one.
    """

    provider: Provider
    device: str = ""

    @classmethod
    def of(cls, text: str) -> Choice:
        """Reads "QNNExecutionProvider", "qnn", "OpenVINO:NPU".

        Raises:
            ValueError: There is no such provider (the nearest is suggested), or no such device of it.
        """
        name, _, device = text.partition(":")
        wanted = name.lower().removesuffix(SUFFIX.lower())
        shorts = {p.short.lower(): p for p in PROVIDERS.values()}
        if wanted == "armnn":
            raise ValueError("provider 'ArmNN' was removed from ONNX Runtime; use 'XNNPACK' or 'ACL'")
        if wanted not in shorts:
            near = difflib.get_close_matches(wanted, shorts, n=1, cutoff=0.5)
            known = ", ".join(sorted(p.short for p in shorts.values()))
            hint = f"did you mean {shorts[near[0]].short!r}?" if near else f"known: {known}"
            raise ValueError(f"provider {name!r} is not known; {hint}")
        provider = shorts[wanted]
        devices = {d.lower(): d for d in provider.devices}
        if device and device.lower() not in devices:
            others = ", ".join(filter(None, provider.devices)) or "none but its own"
            raise ValueError(f"provider {provider.short!r} has no device {device!r}; it has {others}")
        return cls(provider, devices[device.lower()] if device else provider.devices[0])

    @property
    def fixed_shapes(self) -> bool:
        """Whether every size must be known when a model is loaded."""
        return self.device in self.provider.fixed_shapes

    def __str__(self) -> str:
        usual = self.device == self.provider.devices[0]
        return self.provider.short if usual else f"{self.provider.short}:{self.device}"
