from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgewright.data import Batches, Data, is_shuffled
from edgewright.errors import DataError

X = np.arange(40, dtype=np.float32).reshape(20, 2)
Y = np.arange(20) % 2


def _batches(count: int, size: int) -> Batches:
    return Batches(inputs=torch.arange(count).float()[:, None], labels=torch.zeros(count).long(), size=size)


@pytest.mark.parametrize(
    ("count", "size", "lengths"), [(8, 4, [4, 4]), (10, 4, [4, 4, 2]), (9, 4, [4, 5]), (1, 4, [1])]
)
def test_no_batch_holds_a_single_left_over_sample(count: int, size: int, lengths: list[int]) -> None:
    batches = _batches(count, size)
    assert [len(labels) for _, labels in batches] == lengths
    assert len(batches) == len(lengths)


def test_epoch_gives_each_sample_once_in_the_order_of_its_generator() -> None:
    batches = _batches(50, 8)

    def order(seed: int) -> list[float]:
        generator = torch.Generator().manual_seed(seed)
        return torch.cat([inputs for inputs, _ in batches.epoch(generator)]).flatten().tolist()

    assert sorted(order(0)) == list(range(50))
    assert order(0) == order(0)
    assert order(0) != order(1)
    assert torch.cat([inputs for inputs, _ in batches]).flatten().tolist() == list(range(50))


def test_labels_stay_with_their_inputs() -> None:
    data = Data.from_arrays(X, X[:, 0].astype(np.int64), X, X[:, 0].astype(np.int64), batch_size=3)
    assert isinstance(data.train, Batches)
    for inputs, labels in data.train.epoch(torch.Generator().manual_seed(0)):
        assert torch.equal(inputs[:, 0].long(), labels)


def test_only_epochs_are_augmented() -> None:
    data = Data.from_arrays(X, Y, X, Y, augment=lambda inputs, _generator: inputs + 1000)
    assert isinstance(data.train, Batches)
    assert all(inputs.max() < 1000 for inputs, _ in data.train)
    assert all(inputs.min() >= 1000 for inputs, _ in data.train.epoch(torch.Generator()))


def test_split_takes_its_share_of_each_class_and_follows_its_seed() -> None:
    labels = np.array([0] * 50 + [1] * 10)
    inputs = np.arange(60, dtype=np.float64)[:, None]

    def held(seed: int) -> set[float]:
        data = Data.from_arrays(inputs, labels, seed=seed)
        ((x, y),) = data.validation
        assert np.bincount(y).tolist() == [10, 2]
        trained = {float(value) for batch, _ in data.train for value in batch}
        out = {float(value) for value in x}
        assert trained | out == set(range(60))
        assert not trained & out
        return out

    assert held(0) == held(0)
    assert held(0) != held(1)


def test_arrays_are_copied() -> None:
    mine = X.copy()
    data = Data.from_arrays(mine, Y, mine, Y)
    mine[:] = 0
    assert next(iter(data.train))[0].max() == X.max()


def test_npz_with_two_or_four_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", x=X, y=Y)
    np.savez(
        tmp_path / "four.npz", x_train=X, y_train=Y.astype(np.uint8), x_validation=X[:4], y_validation=Y[:4]
    )
    two, four = Data.from_npz(tmp_path / "two.npz"), Data.from_npz(str(tmp_path / "four.npz"), batch_size=5)
    assert [len(labels) for _, labels in two.validation] == [4]
    assert [len(labels) for _, labels in four.train] == [5, 5, 5, 5]
    inputs, labels = next(iter(four.validation))
    assert (inputs.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert np.array_equal(inputs, X[:4])


def _with_nan() -> NDArray[np.float32]:
    x = X.copy()
    x[3, 1] = np.nan
    x[7, 0] = np.inf
    return x


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_train": X, "y_train": Y}, r"x_validation, y_validation missing \(found x_train, y_train\)"),
        ({}, r"x_train, y_train, x_validation, y_validation missing \(found nothing\)"),
        ({"x": X, "y": Y[:-1]}, r"x_train has 20 samples, but y_train has 19 labels"),
        ({"x": _with_nan(), "y": Y}, r"NaN or infinity in 2 of 20 samples, the first at index 3"),
        ({"x": np.full((4, 2), 1e300), "y": Y[:4]}, r"NaN or infinity in 4 of 4"),
        ({"x": X, "y": Y - 1}, r"label -1; class numbers begin at 0"),
        ({"x": X, "y": Y * 0.5}, r"y_train has dtype float64; labels must be integers"),
        ({"x": X.astype(str), "y": Y}, r"x_train has dtype <U\d+; it must hold numbers"),
        ({"x": X, "y": Y[:, None]}, r"y_train \(20, 1\)"),
        ({"x": X[:0], "y": Y[:0]}, r"x_train is empty"),
        ({"x": X[:2], "y": Y[:2]}, r"2 samples are too few"),
        (
            {"x_train": X, "y_train": Y, "x_validation": X[:, :1], "y_validation": Y},
            r"x_validation holds samples of shape \(1\), but x_train of shape \(2\)",
        ),
        (
            {"x_train": X, "y_train": Y, "x_validation": X, "y_validation": Y + 5},
            r"y_validation has label 6, but y_train only goes up to 1",
        ),
    ],
)
def test_bad_arrays_are_told_apart(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays)
    with pytest.raises(DataError, match=rf"mine\.npz: .*{message}"):
        Data.from_npz(path)


class _Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was loaded",))


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "trap.npz"
    np.savez(path, x=np.array([_Trap()], dtype=object), y=Y)
    with pytest.raises(DataError, match="Object arrays cannot be loaded"):
        Data.from_npz(path)


@pytest.mark.parametrize("content", [None, b"", b"no zip", b"PK\x03\x04 cut off"], ids=repr)
def test_unreadable_npz_is_a_data_error(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.npz: cannot read"):
        Data.from_npz(path)


def test_single_array_file_is_a_data_error(tmp_path: Path) -> None:
    with (tmp_path / "one.npz").open("wb") as file:
        np.save(file, X)
    with pytest.raises(DataError, match=r"one\.npz: cannot read"):
        Data.from_npz(tmp_path / "one.npz")


def test_wrong_arguments_are_value_errors() -> None:
    with pytest.raises(ValueError, match="both x_validation and y_validation"):
        Data.from_arrays(X, Y, X)
    with pytest.raises(ValueError, match="batch_size"):
        Data.from_arrays(X, Y, batch_size=0)
    with pytest.raises(ValueError, match="validation_part"):
        Data.from_arrays(X, Y, validation_part=1.0)


def test_npz_of_several_inputs_has_each_by_its_name(tmp_path: Path) -> None:
    tokens, mask = np.arange(40).reshape(20, 2), np.ones((20, 2), np.float32)
    np.savez(tmp_path / "split.npz", tokens=tokens, mask=mask, y=Y, tokens_test=tokens)
    split = Data.from_npz(tmp_path / "split.npz")
    inputs, _ = next(iter(split.train))
    assert {name: value.dtype for name, value in inputs.items()} == {
        "tokens": torch.int64,
        "mask": torch.float32,
    }
    np.savez(
        tmp_path / "whole.npz",
        tokens_train=tokens,
        mask_train=mask,
        y_train=Y,
        tokens_validation=tokens[:4],
        mask_validation=mask[:4],
        y_validation=Y[:4],
    )
    inputs, labels = next(iter(Data.from_npz(tmp_path / "whole.npz").validation))
    assert (inputs["tokens"].tolist(), labels.tolist()) == (tokens[:4].tolist(), Y[:4].tolist())
    np.savez(tmp_path / "lacking.npz", tokens_train=tokens, y_train=Y, mask_validation=mask, y_validation=Y)
    with pytest.raises(DataError, match="x_validation holds samples of shape mask"):
        Data.from_npz(tmp_path / "lacking.npz")


def test_a_number_called_epoch_makes_no_shuffled_batches() -> None:
    class Loader(list[Any]):
        epoch = 3

    assert not is_shuffled(Loader())
    assert is_shuffled(_batches(4, 2))
