"""Execution providers: the first that is here and takes the model runs it, and the others are explained."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from device.tiny import Y_SCALE, samples, tiny_artifact
from edgewright_device import (
    PROVIDERS,
    Artifact,
    Choice,
    Runner,
    RunnerError,
    SlotRelease,
    Target,
    health,
    misfits,
    read_onnx,
    target_names,
)
from edgewright_device.backends.negotiation import missing, negotiate, provider_options
from edgewright_device.serving import Serving

TENSORRT, CUDA, CPU = "TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"
QNN, OPENVINO = "QNNExecutionProvider", "OpenVINOExecutionProvider"


class FakeSession:
    """The CPU's session under other names."""

    def __init__(self, runtime: FakeRuntime, model: str, options: Any, providers: Sequence[Any]) -> None:
        asked = [p if isinstance(p, str) else p[0] for p in providers] or [runtime.devices[0].ep_name]
        if error := next((runtime.broken[p] for p in asked if p in runtime.broken), None):
            raise RuntimeError(error)
        runtime.opened.append(SimpleNamespace(model=model, options=options, providers=list(providers)))
        self._real = onnxruntime.InferenceSession(model, options.real, providers=[CPU])
        self._names = [p for p in asked if p not in runtime.unstarted]
        self._taken = runtime.taken.get(asked[0])

    def get_providers(self) -> list[str]:
        return [*self._names, CPU] if CPU not in self._names else self._names

    def get_provider_graph_assignment_info(self) -> list[Any]:
        if self._taken is None:
            raise RuntimeError("not recorded")
        nodes = [SimpleNamespace(name="fc", op_type="Gemm"), SimpleNamespace(name="clip", op_type="Clip")]
        parts = ((self._names[0], nodes[: self._taken]), (CPU, nodes[self._taken :]))
        return [SimpleNamespace(ep_name=n, get_nodes=lambda some=some: some) for n, some in parts if some]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class FakeOptions:
    def __init__(self) -> None:
        self.real = onnxruntime.SessionOptions()
        self.entries: dict[str, str] = {}
        self.fixed: dict[str, int] = {}
        self.chosen: list[tuple[Any, dict[str, str]]] = []
        self.intra_op_num_threads = 0
        self.log_severity_level = 0

    def add_session_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value

    def add_free_dimension_override_by_name(self, name: str, size: int) -> None:
        self.fixed[name] = size
        self.real.add_free_dimension_override_by_name(name, size)

    def add_provider_for_devices(self, devices: list[Any], options: dict[str, str]) -> None:
        self.chosen.append((devices[0], options))


class FakeRuntime:
    """A module that has the providers it is told, and remembers how it was asked."""

    __version__ = "1.99"
    SessionOptions = FakeOptions

    def __init__(self, *built_in: str, offers: Sequence[Any] = ()) -> None:
        self.built_in, self.offers = [*built_in, CPU], list(offers)
        self.devices: list[Any] = []
        self.opened: list[Any] = []
        self.broken: dict[str, str] = {}
        self.unstarted: set[str] = set()
        self.taken: dict[str, int] = {}

    def get_available_providers(self) -> list[str]:
        return [*self.built_in, *{d.ep_name for d in self.devices}]

    def get_ep_devices(self) -> list[Any]:
        return self.devices

    def register_execution_provider_library(self, name: str, path: str) -> None:
        assert path == f"/libraries/{name}"
        self.devices += self.offers

    def InferenceSession(self, model: str, options: Any, providers: Sequence[Any] = ()) -> FakeSession:
        return FakeSession(self, model, options, providers)


@pytest.fixture
def tiny(tmp_path: Path) -> Artifact:
    return tiny_artifact(tmp_path / "tiny.ew")


Run = Callable[..., Runner]


@pytest.fixture
def on(tiny: Artifact, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Loads the artifact in a fake ONNX Runtime."""

    def load(runtime: FakeRuntime, *providers: str, **how: Any) -> Runner:
        monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
        return Runner(tiny, "onnxruntime", providers=providers, **how)

    return load


def plugin(monkeypatch: pytest.MonkeyPatch, module: str, name: str) -> None:
    found = SimpleNamespace(get_library_path=lambda: f"/libraries/{name}")
    monkeypatch.setitem(sys.modules, module, found)


def offer(name: str, **metadata: str) -> Any:
    return SimpleNamespace(ep_name=name, ep_metadata=metadata)


@pytest.mark.parametrize(
    ("text", "name", "shown", "fixed"),
    [
        ("QNNExecutionProvider", QNN, "QNN", True),
        ("qnn", QNN, "QNN", True),
        ("QNN:CPU", QNN, "QNN:cpu", True),
        ("TensorRT", TENSORRT, "Tensorrt", False),
        ("openvino", OPENVINO, "OpenVINO", False),
        ("OpenVINO:npu", OPENVINO, "OpenVINO:NPU", True),
        ("cpuexecutionprovider", CPU, "CPU", False),
    ],
)
def test_a_provider_has_one_name_however_it_is_written(text: str, name: str, shown: str, fixed: bool) -> None:
    choice = Choice.of(text)
    assert (choice.provider.name, str(choice), choice.fixed_shapes) == (name, shown, fixed)
    assert Choice.of(str(choice)) == choice


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("QNM", r"provider 'QNM' is not known; did you mean 'QNN'\?"),
        ("zzzzzz", "provider 'zzzzzz' is not known; known: ACL, CANN, CPU, CUDA"),
        ("ArmNN", "'ArmNN' was removed from ONNX Runtime; use 'XNNPACK' or 'ACL'"),
        ("CUDA:1", "provider 'CUDA' has no device '1'; it has none but its own"),
        ("OpenVINO:TPU", "it has CPU, GPU, NPU"),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_ones(tiny: Artifact, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Choice.of(text)
    with pytest.raises(ValueError, match=message):
        Runner(tiny, "onnxruntime", providers=(text,))


def test_the_names_are_those_of_onnx_runtime() -> None:
    known = set(onnxruntime.get_all_providers())
    assert {p for p in PROVIDERS if p != "ACLExecutionProvider"} <= known  # ACL is listed only when built in
    assert all(p.sources for p in PROVIDERS.values())


def test_without_a_wish_the_cpu_runs_and_nothing_is_negotiated(on: Run, tiny: Artifact) -> None:
    runtime = FakeRuntime(TENSORRT, CUDA)
    runner = on(runtime)
    assert runner.provider is not None
    assert (runner.provider.provider, runner.provider.text) == ("CPU", "CPU")
    assert [o.providers for o in runtime.opened] == [[CPU]]
    assert Runner(tiny).provider is None


def test_the_real_runtime_falls_back_in_order_and_says_why(tiny: Artifact) -> None:
    wanted = ("TensorRT", "CANN", "xnnpack", "CPU")
    runner = Runner(tiny, "onnxruntime", providers=wanted)
    assert runner.provider is not None
    assert runner.provider.provider == "CPU"
    tensorrt, cann, xnnpack = runner.provider.refused
    assert tensorrt == (
        "Tensorrt: not installed: pip install onnxruntime-gpu, in place of the ONNX Runtime that is here"
    )
    assert "pip install onnxruntime-cann" in cann
    assert "build ONNX Runtime with it" in xnnpack
    x = {"x": samples(4)}
    plain = Runner(tiny, "onnxruntime").run(x)["y"]
    np.testing.assert_array_equal(runner.run(x)["y"], plain)


def test_a_provider_that_was_demanded_and_is_missing_is_an_error_with_the_package(tiny: Artifact) -> None:
    with pytest.raises(RunnerError, match=r"pip install onnxruntime-gpu.*Or add CPU as the last"):
        Runner(tiny, "onnxruntime", providers=("CUDA",))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_providers_are_for_onnx_runtime_alone(tiny: Artifact, backend: str) -> None:
    with pytest.raises(ValueError, match=f"providers are for backend 'onnxruntime', not '{backend}'"):
        Runner(tiny, backend, providers=("CPU",))


def test_the_first_that_is_built_in_runs_with_those_behind_it(on: Run) -> None:
    runtime = FakeRuntime(TENSORRT, CUDA)
    runtime.taken[TENSORRT] = 2
    runner = on(runtime, "CANN", "TensorRT", "CUDA", "CPU")
    assert runner.provider is not None
    assert (runner.provider.provider, runner.provider.nodes, runner.provider.left) == ("Tensorrt", 2, ())
    (opened,) = runtime.opened
    assert [p if isinstance(p, str) else p[0] for p in opened.providers] == [TENSORRT, CUDA, CPU]
    assert opened.options.entries["session.record_ep_graph_assignment_info"] == "1"


def test_nodes_that_it_does_not_take_are_named(on: Run) -> None:
    runtime = FakeRuntime(CUDA)
    runtime.taken[CUDA] = 1
    negotiated = on(runtime, "CUDA", "CPU").provider
    assert negotiated is not None
    assert negotiated.left == ("CPU: Clip 'clip'",)
    assert negotiated.text == "CUDA (1 of 2 nodes; others: CPU: Clip 'clip')"


def test_one_that_takes_no_node_does_not_start_or_fails_gives_way(on: Run) -> None:
    runtime = FakeRuntime(TENSORRT, CUDA, "MIGraphXExecutionProvider")
    runtime.taken[TENSORRT] = 0
    runtime.unstarted = {CUDA}
    runtime.broken = {"MIGraphXExecutionProvider": "no GPU\nwas found"}
    negotiated = on(runtime, "MIGraphX", "CUDA", "TensorRT", "CPU").provider
    assert negotiated is not None
    assert negotiated.provider == "CPU"
    assert negotiated.refused == (
        "MIGraphX: no GPU was found",
        "CUDA: ONNX Runtime could not start it; a library or driver that it needs is missing",
        "Tensorrt: it takes none of the nodes",
    )


def test_a_plugin_is_registered_once_and_gets_the_device_that_was_asked_for(
    on: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin(monkeypatch, "onnxruntime_ep_openvino", OPENVINO)
    cpu, npu = offer(OPENVINO, ov_device="CPU"), offer(OPENVINO, ov_device="NPU")
    runtime = FakeRuntime(offers=[cpu, npu])
    for asked, device in (("OpenVINO", cpu), ("OpenVINO:NPU", npu)):
        runner = on(runtime, asked, threads=2)
        assert runner.provider is not None
        assert runner.provider.provider == asked
        (chosen, options) = runtime.opened[-1].options.chosen[0]
        assert chosen is device
        assert "device_type" not in options
        assert "ACCURACY" in options["load_config"]
        assert ("INFERENCE_NUM_THREADS" in options["load_config"]) == (asked == "OpenVINO")
    assert runtime.devices == [cpu, npu]
    with pytest.raises(RunnerError, match="OpenVINO:GPU: this machine has no GPU for it; it offers CPU, NPU"):
        on(runtime, "OpenVINO:GPU")


def test_a_plugin_that_does_not_load_says_which_package(on: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin(monkeypatch, "onnxruntime_qnn", "another")
    with pytest.raises(RunnerError, match=r"onnxruntime-qnn does not load in ONNX Runtime 1\.99"):
        on(FakeRuntime(), "QNN")
    monkeypatch.setitem(sys.modules, "onnxruntime_qnn", None)
    with pytest.raises(RunnerError, match=r"not installed: pip install onnxruntime-qnn\. Or add"):
        on(FakeRuntime(), "QNN")


def test_where_sizes_must_be_fixed_samples_run_one_by_one(on: Run, tiny: Artifact) -> None:
    runtime = FakeRuntime(QNN)
    runner = on(runtime, "QNN")
    assert runtime.opened[-1].options.fixed == {"N": 1}
    x = {"x": samples(5)}
    np.testing.assert_allclose(runner.run(x)["y"], Runner(tiny).run(x)["y"], atol=1.01 * Y_SCALE)


def test_what_qnn_compiles_is_kept_and_taken_the_next_time(on: Run, tiny: Artifact, tmp_path: Path) -> None:
    runtime = FakeRuntime(QNN)
    on(runtime, "QNN", cache=tmp_path / "kept")
    compiled = Path(runtime.opened[-1].options.entries["ep.context_file_path"])
    assert compiled.parent == tmp_path / "kept" / tiny.digest[:16] / "qnn-htp"
    compiled.write_bytes(tiny.read("model.onnx"))
    on(runtime, "QNN", cache=tmp_path / "kept")
    assert runtime.opened[-1].model == str(compiled)
    assert "ep.context_enable" not in runtime.opened[-1].options.entries
    assert Artifact.open(tiny.path).digest == tiny.digest  # nothing lies in the artifact


def test_options_are_those_of_each_providers_documentation(tmp_path: Path) -> None:
    def options(text: str, **how: Any) -> dict[str, str]:
        return provider_options(Choice.of(text), **how)

    assert options("TensorRT") == {"device_id": "0", "trt_int8_enable": "1", "trt_fp16_enable": "0"}
    kept = options("TensorRT", cache=tmp_path)
    assert (kept["trt_engine_cache_enable"], kept["trt_engine_cache_path"]) == ("1", str(tmp_path))
    assert options("QNN") == {"backend_type": "htp", "enable_htp_fp16_precision": "0"}
    assert options("QNN:cpu")["backend_type"] == "cpu"
    assert options("OpenVINO:NPU")["device_type"] == "NPU"
    assert "CACHE_DIR" in options("OpenVINO", cache=tmp_path)["load_config"]
    assert options("MIGraphX")["migraphx_fp16_enable"] == "0"
    assert options("CANN") == {"device_id": "0", "enable_cann_graph": "1"}
    assert options("XNNPACK", threads=3) == {"intra_op_num_threads": "3"}
    assert options("ACL") == options("Nnapi") == options("rknpu") == {}


def test_xnnpack_has_the_threads_and_onnx_runtime_none(on: Run) -> None:
    runtime = FakeRuntime("XnnpackExecutionProvider")
    on(runtime, "XNNPACK", threads=4)
    options = runtime.opened[-1].options
    assert options.intra_op_num_threads == 1
    assert options.entries["session.intra_op.allow_spinning"] == "0"
    assert runtime.opened[-1].providers[0] == ("XnnpackExecutionProvider", {"intra_op_num_threads": "4"})


def test_an_old_onnx_runtime_without_plugins_or_assignment_is_enough() -> None:
    old = SimpleNamespace(get_available_providers=lambda: [CUDA, CPU], __version__="1.18")
    assert missing(old, Choice.of("CUDA")) == ""
    assert "pip install onnxruntime-gpu" in missing(old, Choice.of("TensorRT"))


@pytest.mark.parametrize("name", [n for n in target_names() if Target.load(n).choices()])
def test_every_target_negotiates_its_first_provider_where_it_is_there(name: str, tiny: Artifact) -> None:
    target = Target.load(name)
    first = target.choices()[0]
    runtime = FakeRuntime(first.provider.name)
    models = {"model.onnx": read_onnx(tiny.read("model.onnx"))}
    _, found = negotiate(runtime, tiny.path, models, target.choices())
    assert (found.provider, found.refused) == (str(first), ())
    assert found.fixed_batch == first.fixed_shapes


# What each takes


def qdq(
    activation: str = "uint8",
    zero: int = 100,
    weight: str = "int8",
    channels: int = 3,
    operator: str = "Relu",
) -> bytes:
    """x, quantized; times weights; an operator."""
    kinds = {n: getattr(onnx.TensorProto, n.upper()) for n in ("uint8", "int8", "int16", "uint16", "int4")}
    types = {n: helper.tensor_dtype_to_np_dtype(k) for n, k in kinds.items()}
    constants = {
        "s": np.float32(0.1),
        "z": np.asarray(zero, types[activation]),
        "w": np.ones((4, 3), types[weight]),
        "ws": np.full(channels, 0.1, np.float32) if channels > 1 else np.float32(0.1),
        "b": np.ones(3, np.int32),
        "bs": np.float32(0.01),
    }
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"], name="x_q"),
            helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"], name="x_dq"),
            helper.make_node("DequantizeLinear", ["w", "ws"], ["wd"], name="w_dq", axis=1),
            helper.make_node("DequantizeLinear", ["b", "bs"], ["bd"], name="b_dq"),
            helper.make_node("Gemm", ["xd", "wd", "bd"], ["g"], name="fc"),
            helper.make_node(operator, ["g"], ["y"], name="last"),
        ],
        "qdq",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return bytes(model.SerializeToString())


def first_misfit(provider: str, data: bytes, *, operators: bool = False) -> str:
    return next(misfits(read_onnx(data), Choice.of(provider), operators=operators), "")


def test_the_reader_sees_what_onnx_sees() -> None:
    data = qdq()
    file, model = read_onnx(data), onnx.load_from_string(data)
    assert [(n.name, n.operator, list(n.inputs), list(n.outputs)) for n in file.nodes] == [
        (n.name, n.op_type, list(n.input), list(n.output)) for n in model.graph.node
    ]
    assert file.nodes[2].numbers == {"axis": 1}
    assert file.inputs == {"x": ("N", 4)}
    assert {n: (c.type, c.sizes) for n, c in file.constants.items()} == {
        t.name: (
            onnx.TensorProto.DataType.Name(t.data_type).lower().replace("float", "float32"),
            tuple(t.dims),
        )
        for t in model.graph.initializer
    }
    assert [n for n, c in file.constants.items() if c.zero] == []
    assert read_onnx(qdq(zero=0)).constants["z"].zero


def test_a_file_that_is_cut_or_changed_is_a_value_error_or_a_file() -> None:
    data = bytearray(qdq())
    for end in range(0, len(data), 3):
        try:
            read_onnx(bytes(data[:end]))
        except ValueError:
            continue
    generator = np.random.default_rng(0)
    for place, byte in zip(generator.integers(len(data), size=500), generator.bytes(500), strict=True):
        changed = bytearray(data)
        changed[place] = byte
        try:
            read_onnx(bytes(changed))
        except ValueError:
            continue
    for nothing in (b"", b"\xff" * 20, b"\x3a\x7f", b"\x08\x08"):
        with pytest.raises(ValueError, match="ONNX file"):
            read_onnx(nothing)


@pytest.mark.parametrize(
    ("provider", "how", "message"),
    [
        (
            "TensorRT",
            {},
            r"layer 'x_q': its activations are uint8, Tensorrt takes int8; export it for a target",
        ),
        ("TensorRT", {"activation": "int8", "zero": 3}, r"layer 'x_q': its zero point is not 0, as Tensorrt"),
        ("TensorRT", {"activation": "int8", "zero": 0}, ""),
        ("TensorRT", {"activation": "int8", "zero": 0, "weight": "int4"}, ""),
        ("QNN", {}, ""),
        ("QNN", {"activation": "uint16"}, ""),
        ("QNN", {"activation": "int16"}, r"are int16, QNN takes uint16 or uint8; quantize with activations"),
        ("QNN", {"weight": "int4"}, r"layer 'w_dq': its weights are int4.*quantize with weights = \"int8\""),
        ("OpenVINO", {}, ""),
        ("OpenVINO", {"activation": "int8", "zero": 0}, ""),
        ("OpenVINO", {"activation": "int16"}, "are int16, OpenVINO takes int8 or uint8"),
        ("MIGraphX", {}, ""),
        ("CANN", {}, "are uint8, CANN takes int8"),
        ("CANN", {"activation": "int8", "zero": 0}, ""),
        ("RKNPU", {"weight": "uint8"}, "layer 'w_dq': it has a scale for each channel, Rknpu takes one"),
        ("RKNPU", {"weight": "uint8", "channels": 1}, ""),
        ("CUDA", {"activation": "int16", "weight": "int4"}, ""),
        ("CPU", {"activation": "int16", "weight": "int4"}, ""),
    ],
)
def test_what_a_provider_does_not_take_is_named_with_the_layer_and_the_remedy(
    provider: str, how: dict[str, Any], message: str
) -> None:
    found = first_misfit(provider, qdq(**how))
    assert re.search(message, found) if message else found == ""


def test_operators_count_only_where_nothing_else_could_run_them() -> None:
    data = qdq(operator="Softplus")
    assert first_misfit("QNN", data) == ""
    assert first_misfit("QNN", data, operators=True).startswith("layer 'last': QNN has no operator Softplus")


def test_a_model_that_does_not_fit_is_refused_before_a_session_is_made(tmp_path: Path) -> None:
    runtime = FakeRuntime(TENSORRT)
    with pytest.raises(RunnerError, match="layer 'x_q': its activations are uint8"):
        negotiate(runtime, tmp_path, {"model.onnx": read_onnx(qdq())}, [Choice.of("TensorRT")])
    assert runtime.opened == []


def test_a_provider_gets_the_form_of_the_model_that_it_takes(tmp_path: Path) -> None:
    forms = {"model.onnx": qdq(), "symmetric.onnx": qdq(activation="int8", zero=0)}
    for name, data in forms.items():
        (tmp_path / name).write_bytes(data)
    models = {name: read_onnx(data) for name, data in forms.items()}
    for provider, name in ((TENSORRT, "symmetric.onnx"), (OPENVINO, "model.onnx"), (CPU, "model.onnx")):
        runtime = FakeRuntime(provider)
        _, found = negotiate(runtime, tmp_path, models, [Choice.of(provider)])
        assert found.file == name
        assert [o.model for o in runtime.opened] == [str(tmp_path / name)]


# Where it shows


def test_the_health_check_and_the_local_server_say_which_provider_runs(tiny: Artifact) -> None:
    report = health.check(tiny.path, backend="onnxruntime", providers=("CUDA", "CPU"))
    assert report.passed
    assert report.provider.startswith("CPU; not CUDA: not installed: pip install onnxruntime-gpu")
    demanded = health.check(tiny.path, backend="onnxruntime", providers=("CUDA",))
    assert not demanded.passed
    assert "CUDA: not installed" in demanded.reason
    assert health.check(tiny.path).provider == ""
    release = SlotRelease(name="tiny", version="1.0.0", digest=tiny.digest, rollback_index=0)
    with Serving() as serving:
        serving.swap(Runner(tiny, "onnxruntime", providers=("CANN", "CPU")), release)
        assert serving.status()["provider"].startswith("CPU; not CANN: not installed")
        serving.swap(Runner(tiny), release)
        assert serving.status()["provider"] is None


def test_a_damaged_model_is_one_error(tiny: Artifact) -> None:
    (tiny.path / "model.onnx").write_bytes(b"\x3a\x7f")
    with pytest.raises(RunnerError, match=r"model\.onnx: the ONNX file ends too early"):
        Runner(tiny, "onnxruntime", providers=("QNN", "CPU"))
