"""Work that is cut off goes on to the bits it would have had, wherever that was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from edgewright.checkpoint import Checkpoint
from edgewright.compression import compress
from edgewright.data import Data
from edgewright.errors import CompressError, DataError
from edgewright.progress import Progress
from edgewright.recipe import Distill, Finetune, Prune, Qat, Recipe, Training
from edgewright.structure import described, rebuilt
from edgewright.training import train

RECIPE = Recipe(
    name="all", seed=3, distill=Distill(epochs=2), prune=Prune(ratio=0.5), finetune=Finetune(epochs=2)
)


class Small(nn.Module):
    """Takes float32 (N, 1, 4, 4), gives logits (N, 3); has what trains differently from how it runs."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(4 * width, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.drop(self.norm(self.conv(x)).relu()).flatten(1))
        return out


def made(kind: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind().eval()


def noise(x: Any, generator: torch.Generator) -> Any:
    return x + 0.1 * torch.randn(x.shape, generator=generator)


def arrays(seed: int = 0) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    labels = np.arange(60) % 3
    return (random.normal(size=(60, 1, 4, 4)) + labels[:, None, None, None]).astype(np.float32), labels


def in_memory(seed: int = 0) -> Data:
    return Data.from_arrays(*arrays(seed), batch_size=8, augment=noise)


def loaded() -> Data:
    x, y = map(torch.from_numpy, arrays())
    loader: DataLoader[tuple[Tensor, ...]] = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)
    return Data(train=loader, validation=[(x, y)])


def same(one: nn.Module, two: nn.Module) -> bool:
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


class CutOffError(Exception):
    pass


def cut_at(report: int, reports: list[Progress] | None = None) -> Callable[[Progress], None]:
    """Cancels at the report of this number, from 0; those of what was done before do not count."""
    seen = [] if reports is None else reports

    def progress(each: Progress) -> None:
        if each.note:
            return
        seen.append(each)
        if len(seen) == report + 1:
            raise CutOffError

    return progress


def _bare(report: Progress) -> Progress:
    """A report without what depends on the clock and on when this run began."""
    return replace(report, begun=0, remaining_s=None)


@pytest.mark.parametrize("data", [in_memory, loaded])
def test_compression_that_is_cancelled_anywhere_goes_on_to_the_same_bits(
    tmp_path: Path, data: Callable[[], Data]
) -> None:
    student, teacher = made(Small), made(lambda: Small(16))
    whole: list[Progress] = []
    expected = compress(student, RECIPE, data=data(), teacher=teacher, progress=whole.append)
    assert {each.step for each in whole} == {"distill", "prune", "finetune"}
    for place in range(len(whole)):
        folder, rest = tmp_path / str(place), list[Progress]()
        with pytest.raises(CutOffError):
            compress(student, RECIPE, data=data(), teacher=teacher, progress=cut_at(place), checkpoint=folder)
        again = compress(
            student, RECIPE, data=data(), teacher=teacher, progress=rest.append, checkpoint=folder
        )
        assert same(again, expected), f"cut at {whole[place]}"
        told = [_bare(each) for each in rest if not each.note]
        assert told == list(map(_bare, whole))[len(whole) - len(told) :]
        redone = 1 if whole[place].step == "prune" else 0  # pruning keeps no position: it begins again
        assert len(told) == len(whole) - place - 1 + redone


def test_work_cut_off_many_times_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    student, teacher, data = made(Small), made(lambda: Small(16)), in_memory()
    expected = compress(student, RECIPE, data=data, teacher=teacher)
    cuts = 0
    for _ in range(30):
        try:
            again = compress(
                student, RECIPE, data=data, teacher=teacher, progress=cut_at(2), checkpoint=tmp_path / "c"
            )
            break
        except CutOffError:
            cuts += 1
    assert 3 < cuts < 30
    assert same(again, expected)


KILLED = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from sdk.test_checkpoint import RECIPE, Small, in_memory, made, compress

count = 0

def kill(report):
    global count
    count += 1
    if count == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

teacher = made(lambda: Small(16))
small = compress(
    made(Small), RECIPE, data=in_memory(), teacher=teacher, progress=kill, checkpoint=sys.argv[1]
)
torch.save(small.state_dict(), sys.argv[3])
"""


def test_a_killed_process_leaves_what_another_one_finishes_to_the_same_bits(tmp_path: Path) -> None:
    expected = compress(made(Small), RECIPE, data=in_memory(), teacher=made(lambda: Small(16)))
    out = tmp_path / "small.pt"

    def run(at: int) -> int:
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        command = [sys.executable, "-c", KILLED, str(tmp_path / "kept"), str(at), str(out)]
        return subprocess.run(command, env=environment, check=False).returncode

    assert run(5) == -signal.SIGKILL
    assert (tmp_path / "kept" / "distill.position.safetensors").is_file()
    assert run(1000) == 0
    kept = torch.load(out, weights_only=True)
    assert all(torch.equal(value, kept[name]) for name, value in expected.state_dict().items())


def test_steps_that_are_done_are_not_done_again(tmp_path: Path) -> None:
    student, teacher, data = made(Small), made(lambda: Small(16)), in_memory()
    first = compress(student, RECIPE, data=data, teacher=teacher, checkpoint=tmp_path / "kept")
    reports: list[Progress] = []
    again = compress(
        student, RECIPE, data=data, teacher=teacher, checkpoint=tmp_path / "kept", progress=reports.append
    )
    assert same(first, again)
    assert [each.step for each in reports] == ["distill", "prune", "finetune"]
    assert all("was done before" in each.note for each in reports)
    names = {path.name for path in (tmp_path / "kept").iterdir()}
    assert names == {"lock.json", "distill.safetensors", "prune.safetensors", "finetune.safetensors"}


def test_training_alone_is_resumed_too(tmp_path: Path) -> None:
    how, data = Training(epochs=3), in_memory()
    expected = train(made(Small), data, how, seed=1)
    with pytest.raises(CutOffError):
        train(made(Small), data, how, seed=1, progress=cut_at(5), checkpoint=tmp_path / "kept")
    again = train(made(Small), data, how, seed=1, checkpoint=tmp_path / "kept")
    assert same(again, expected)
    with pytest.raises(CompressError, match=r"belongs to other work: seed was 1 and is 2\. Give what"):
        train(made(Small), data, how, seed=2, checkpoint=tmp_path / "kept")


def test_a_checkpoint_of_other_work_is_refused_and_says_what_differs(tmp_path: Path) -> None:
    student, teacher, data = made(Small), made(lambda: Small(16)), in_memory()
    kept = tmp_path / "kept"
    with pytest.raises(CutOffError):
        compress(student, RECIPE, data=data, teacher=teacher, checkpoint=kept, progress=cut_at(0))
    before = {path: path.read_bytes() for path in kept.iterdir()}
    other = replace(RECIPE, seed=4, prune=None)
    for arguments, message in (
        ({"recipe": other}, r"prune was absent|seed was 3 and is 4"),
        ({"model": made(Small, seed=1)}, "the model is another"),
        ({"data": in_memory(1)}, "the training data are others; the validation data are others"),
        ({"teacher": made(lambda: Small(16), seed=1)}, "the teacher is another"),
    ):
        given: dict[str, Any] = {"model": student, "recipe": RECIPE, "data": data, "teacher": teacher}
        with pytest.raises(CompressError, match=message):
            compress(**(given | arguments), checkpoint=kept)
    assert before == {path: path.read_bytes() for path in kept.iterdir()}


def test_other_versions_and_threads_are_other_work(tmp_path: Path) -> None:
    data, kept = in_memory(), tmp_path / "kept"
    recipe = Recipe(name="tune", finetune=Finetune(epochs=1))
    compress(made(Small), recipe, data=data, checkpoint=kept)
    lock = json.loads((kept / "lock.json").read_text())
    lock["versions"]["torch"] = "1.0"
    lock["machine"]["threads"] = "64"
    (kept / "lock.json").write_text(json.dumps(lock))
    with pytest.raises(CompressError, match=r"threads was '64' and is '1'; torch was '1.0' and is '2"):
        compress(made(Small), recipe, data=data, checkpoint=kept)


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(CompressError, match="is there already and is no checkpoint"):
        compress(made(Small), Recipe(name="none"), data=in_memory(), checkpoint=tmp_path)


def test_what_a_power_cut_left_half_written_is_not_read_and_what_is_damaged_is_named(tmp_path: Path) -> None:
    recipe, data, kept = Recipe(name="tune", finetune=Finetune(epochs=2)), in_memory(), tmp_path / "kept"
    with pytest.raises(CutOffError):
        compress(made(Small), recipe, data=data, checkpoint=kept, progress=cut_at(3))
    position = kept / "finetune.position.safetensors"
    (kept / f".{position.name}.tmp").write_bytes(position.read_bytes()[:100])
    whole = position.read_bytes()
    position.write_bytes(whole[:-20])
    with pytest.raises(CompressError, match=r"finetune\.position\.safetensors: this checkpoint is damaged"):
        compress(made(Small), recipe, data=data, checkpoint=kept)
    position.write_bytes(whole)
    again = compress(made(Small), recipe, data=data, checkpoint=kept)
    assert same(again, compress(made(Small), recipe, data=data))


def test_a_loader_with_a_generator_of_its_own_is_refused(tmp_path: Path) -> None:
    x, y = map(torch.from_numpy, arrays())
    loader: DataLoader[tuple[Tensor, ...]] = DataLoader(
        TensorDataset(x, y), batch_size=8, shuffle=True, generator=torch.Generator()
    )
    data = Data(train=loader, validation=[(x, y)])
    with pytest.raises(DataError, match="draws from a generator of its own"):
        compress(made(Small), Recipe(name="none"), data=data, checkpoint=tmp_path / "kept")


def test_writing_takes_a_small_part_of_the_time(tmp_path: Path) -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 1  # every look at the clock takes a second, so that a save takes one
        return now[0]

    kept = Checkpoint(tmp_path, clock=clock)
    assert kept.due()
    kept.save("x", {}, {})
    assert not kept.due()
    now[0] += 20
    assert kept.due()


class Transformer(nn.Module):
    """Takes float32 (N, 5, 8), gives logits (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.TransformerEncoderLayer(8, 4, 16, dropout=0.1, batch_first=True) for _ in range(3)]
        self.encoder = nn.Sequential(*layers)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(x).mean(1))
        return out


def test_heads_and_blocks_that_were_pruned_are_not_pruned_again(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels = np.arange(48) % 3
    data = Data.from_arrays(random.normal(size=(48, 5, 8)).astype(np.float32), labels, batch_size=8)
    recipe = Recipe(name="heads", prune=Prune(ratio=0.25, heads=0.5, blocks=1), finetune=Finetune(epochs=1))
    expected = compress(made(Transformer), recipe, data=data)
    rest: list[Progress] = []
    with pytest.raises(CutOffError):
        compress(made(Transformer), recipe, data=data, progress=cut_at(3), checkpoint=tmp_path / "kept")
    again = compress(made(Transformer), recipe, data=data, progress=rest.append, checkpoint=tmp_path / "kept")
    assert same(again, expected)
    assert [each.note for each in rest if each.step == "prune"] == ["prune: was done before"]


def test_training_for_integers_is_resumed_and_not_done_again(tmp_path: Path) -> None:
    data, kept = in_memory(), tmp_path / "kept"
    recipe = Recipe(name="integers", qat=Qat(epochs=2))
    expected = compress(made(Small), recipe, data=data)
    for place in (1, 4):
        with pytest.raises(CutOffError):
            compress(made(Small), recipe, data=data, progress=cut_at(place), checkpoint=kept)
    for _ in range(2):  # the second time, all of it is done
        rest: list[Progress] = []
        again = compress(made(Small), recipe, data=data, progress=rest.append, checkpoint=kept)
        assert same(again, expected)
    trained = [each for each in rest if each.step == "qat" and "loss" in each.metrics]
    assert not trained
    assert "qat: was done before" in [each.note for each in rest]


# What a step may have made of a model


class Stack(nn.Module):
    """Blocks in a row; the first weight is shared with the last."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
        self.head = nn.Linear(4, 4, bias=False)
        first = self.blocks[0]
        assert isinstance(first, nn.Linear)
        self.head.weight = first.weight
        self.shape = (4, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(nn.Sequential(*self.blocks)(x))
        return out


def _without_a_block(model: Stack) -> None:
    del model.blocks[1]


def _with_identity(model: Stack) -> None:
    model.blocks[1] = nn.Identity()


def _narrower(model: Stack) -> None:
    model.blocks[0].weight = nn.Parameter(torch.ones(4, 4))
    model.head.weight = model.blocks[0].weight
    model.shape = (2, 4)


def _frozen(model: Stack) -> None:
    model.blocks[2].requires_grad_(False)


def _biasless(model: Stack) -> None:
    model.blocks[2].bias = None  # type: ignore[assignment]


@pytest.mark.parametrize("change", [_without_a_block, _with_identity, _narrower, _frozen, _biasless])
def test_what_a_step_made_of_a_model_is_told_and_made_again(change: Callable[[Stack], None]) -> None:
    original = made(Stack)
    changed = made(Stack)
    assert isinstance(changed, Stack)
    change(changed)
    told = described(changed, original)
    assert told is not None
    tensors, table = told
    again = rebuilt(original, tensors, json.loads(json.dumps(table)))
    assert isinstance(again, Stack)
    assert same(again, changed)
    assert again.shape == changed.shape
    assert again.head.weight is again.blocks[0].weight
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again(x), changed(x))
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in changed.parameters()]


def test_what_cannot_be_told_is_noticed() -> None:
    original, changed = made(Stack), made(Stack)
    changed.blocks.append(nn.Tanh())  # type: ignore[union-attr, operator]
    assert described(changed, original) is None
    changed = made(Stack)
    changed.head = nn.Tanh()
    assert described(changed, original) is None
