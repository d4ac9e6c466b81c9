"""What the packages promise about their names and their imports."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys

import pytest

PACKAGES = ("edgewright", "edgewright_device", "edgewright_kernels", "edgewright_ota")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_there_and_says_what_it_is(package: str) -> None:
    face = importlib.import_module(package)
    for name in face.__all__:
        value = getattr(face, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, f"{package}.{name}"
            # a dataclass without a docstring gets its signature as one
            assert not value.__doc__.startswith(f"{name}("), f"{package}.{name}"


@pytest.mark.parametrize("package", PACKAGES)
def test_a_name_that_is_not_there_is_an_attribute_error(package: str) -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        importlib.import_module(package).no_such_name  # noqa: B018


@pytest.mark.parametrize(
    ("package", "absent"),
    [
        ("edgewright_kernels", {"torch", "onnx", "onnxruntime", "PySide6", "tuf", "typer"}),
        ("edgewright_ota", {"torch", "onnx", "onnxruntime", "PySide6", "starlette"}),
        ("edgewright_device", {"torch", "onnx", "onnxruntime", "PySide6", "starlette"}),
        ("edgewright_device.cli", {"torch", "onnx", "onnxruntime", "PySide6", "starlette"}),
        ("edgewright", {"torch", "onnx", "onnxruntime", "PySide6"}),
        ("edgewright.cli", {"torch", "onnx", "onnxruntime", "PySide6"}),
        ("edgewright_studio.tasks", {"torch", "PySide6"}),
        ("edgewright_studio.app", {"torch", "onnx", "onnxruntime"}),
    ],
)
def test_a_fresh_process_imports_no_more_than_it_needs(package: str, absent: set[str]) -> None:
    code = f"import sys, {package}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert package in done.stdout.split()
    assert absent.isdisjoint(done.stdout.split())
