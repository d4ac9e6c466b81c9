"""What is said of a smaller model beside the one it was made from."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from edgewright.data import Data
from edgewright.errors import DataError
from edgewright.fidelity import described, fidelity, outputs_of
from edgewright.statistics import mcnemar_p, paired_interval


def test_interval_of_pairs_agrees_with_the_published_example() -> None:
    """Tango 1998, table I: of 44 pairs, 0 and 1 differ."""
    low, high = paired_interval(0, 1, 44)
    assert low == pytest.approx(-0.118, abs=0.001)
    assert high == pytest.approx(0.061, abs=0.002)


def test_interval_of_pairs_holds_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    truth, count, held = -0.01, 800, 0
    for gained, lost, _ in random.multinomial(count, [0.01, 0.02, 0.97], 2000):
        low, high = paired_interval(int(gained), int(lost), count)
        held += low <= truth <= high
    assert 0.935 <= held / 2000 <= 0.97


def test_interval_of_equal_models_is_not_a_point() -> None:
    low, high = paired_interval(0, 0, 1000)
    assert low == pytest.approx(-high)
    assert 0.003 < high < 0.005


def test_mcnemar_counts_only_the_pairs_that_differ() -> None:
    assert mcnemar_p(0, 0) == 1
    assert mcnemar_p(5, 5) == 1
    assert mcnemar_p(0, 10) == pytest.approx(2 / 1024)


def test_counts_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="not counts"):
        paired_interval(6, 5, 10)


def _logits(decisions: list[int]) -> np.ndarray:
    return 4 * np.eye(3)[decisions]


def test_flips_are_seen_where_accuracy_is_kept() -> None:
    found = fidelity(_logits([0, 1, 2, 0]), _logits([1, 1, 2, 1]), [0, 1, 2, 1])
    assert (found.accuracy, found.reference_accuracy, found.difference) == (0.75, 0.75, 0)
    assert found.flip_rate == 0.5
    assert "50.00 % decided differently" in described(found)


def test_a_small_sample_cannot_tell() -> None:
    few = fidelity(_logits([0, 1, 2, 0]), _logits([0, 1, 2, 0]), [0, 1, 2, 0])
    many = fidelity(_logits([0, 1] * 1000), _logits([0, 1] * 1000), [0, 1] * 1000)
    worse = fidelity(_logits([0, 1] * 1000), _logits([0, 0] * 1000), [0, 1] * 1000)
    assert few.loses_less_than(0.01) is None
    assert many.loses_less_than(0.01) is True
    assert worse.loses_less_than(0.01) is False
    assert math.isinf(many.sqnr_db)


def test_outputs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match=r"\(2, 3\)"):
        fidelity(_logits([0, 1]), _logits([0, 1, 2]), [0, 1])


def test_outputs_come_in_the_order_of_the_data() -> None:
    x = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    data = Data.from_arrays(x, np.arange(30) % 3, x, np.arange(30) % 3, batch_size=7)
    model = nn.Sequential(nn.Dropout(0.9), nn.Linear(4, 3))
    logits, labels = outputs_of(model, data.validation)
    with torch.no_grad():
        np.testing.assert_allclose(logits, model[1](torch.from_numpy(x)), rtol=1e-5, atol=1e-6)
    assert labels.tolist() == [i % 3 for i in range(30)]
