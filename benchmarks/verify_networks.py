"""The networks of the verification benchmark: some trained here in seconds, some known ones with real data.

A network that needs data of ../shared/data is left out, and said so, where that is absent. What was trained
is kept in build/verify, so that a second run starts at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from architectures import EncoderLayer, InvertedResidual
from networks import NETWORKS
from safetensors.torch import load_file, save_file
from tflite_reader import onnx_of
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import edgewright as ew

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / "build" / "verify"
CALIBRATION, HELD = 256, 400
MACHINES = (0, 1, 8, 9)  # aeroplanes, cars, ships, lorries among the classes of CIFAR-10
Samples = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A trained network and its data.

    Attributes:
        name: Of it.
        model: A module, or the path of a float .onnx file.
        calibration: Samples to quantize on, by input name.
        held: Samples that neither training nor calibration saw.
        labels: Classes of `held`; None where outputs are no classes.
        train: Labelled samples to train on further; None where there are none at hand.
    """

    name: str
    model: nn.Module | Path
    calibration: Samples
    held: Samples
    labels: npt.NDArray[np.int64] | None
    train: tuple[Samples, npt.NDArray[np.int64]] | None = None


# Networks on scikit-learn's scans of digits


class Lenet(nn.Module):
    """Two convolutions, both kinds of pool, two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.hidden, self.head = nn.Linear(256, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(torch.relu(self.conv1(x)), 2)
        x = functional.avg_pool2d(torch.relu(self.conv2(x)), 3, stride=1, padding=1)
        y: Tensor = self.head(torch.relu(self.hidden(x.flatten(1))))
        return y


class Mobile(nn.Module):
    """Inverted residuals (Sandler et al. 2018), and two branches side by side at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.first, self.second = InvertedResidual(8, 8, 1, 3), InvertedResidual(8, 12, 2, 3)
        self.left, self.right = nn.Conv2d(12, 12, 1), nn.Conv2d(12, 12, 3, padding=1)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(functional.relu6(self.norm(self.stem(x)))))
        x = torch.cat([torch.relu(self.left(x)), torch.relu(self.right(x))], 1)
        y: Tensor = self.head(x.mean((2, 3)))
        return y


class Squeeze(nn.Module):
    """Swish, and channels weighed by what all of the image says (Hu et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, 12, 3, stride=2, padding=1)
        self.down, self.up = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.head = nn.Linear(192, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.silu(self.conv2(functional.silu(self.conv1(x))))
        weight = torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))
        y: Tensor = self.head((x * weight).flatten(1))
        return y


class Rows(nn.Module):
    """A transformer's encoder (Vaswani et al. 2017) over the eight rows of a scan."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.places = nn.Parameter(0.1 * torch.randn(8, 32))
        self.layers = nn.Sequential(EncoderLayer(32, 4, 64), EncoderLayer(32, 4, 64))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(self.embed(x.reshape(-1, 8, 8)) + self.places)
        y: Tensor = self.head(x.mean(1))
        return y


class Recurrent(nn.Module):
    """An LSTM over the rows, which ONNX Runtime runs, between layers that the native engine runs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Linear(8, 16), nn.LSTM(16, 24, batch_first=True)
        self.hidden, self.head = nn.Linear(192, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.lstm(torch.relu(self.embed(x.reshape(-1, 8, 8))))
        y: Tensor = self.head(torch.relu(self.hidden(x.flatten(1))))
        return y


class Denoiser(nn.Module):
    """Takes noise off a scan: down, and up again by a transposed convolution and by interpolation."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, 16, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.beside, self.last = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.down2(torch.relu(self.down1(x))))
        wide = functional.interpolate(self.beside(x), scale_factor=2, mode="bilinear", align_corners=False)
        y: Tensor = self.last(torch.relu(self.up(x) + wide))
        return y


class Heads(nn.Module):
    """The digit, where its ink lies, and how far it spreads: two outputs have the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.hidden = nn.Linear(192, 32)
        self.digit, self.centre, self.spread = nn.Linear(32, 10), nn.Linear(32, 2), nn.Linear(32, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        x = torch.relu(self.hidden(x.flatten(1)))
        return self.digit(x), self.centre(x), self.spread(x)


def moments(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Of scans (N, 1, 8, 8): the centre of the ink and its spread along both axes, (N, 4), about -1..1."""
    ink = x[:, 0] / x.sum((1, 2, 3))[:, None, None]
    at = (np.arange(8, dtype=np.float32) - 3.5) / 2
    rows, columns = ink.sum(2), ink.sum(1)
    centre = np.stack([rows @ at, columns @ at], 1)
    square = np.stack([rows @ at**2, columns @ at**2], 1)
    found: npt.NDArray[np.float32] = np.concatenate([centre, square - centre**2], 1).astype(np.float32)
    return found


def _mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 10)
    )


DIGITS: dict[str, Callable[[], nn.Module]] = {
    "mlp": _mlp,
    "lenet": Lenet,
    "mobile": Mobile,
    "squeeze": Squeeze,
    "rows": Rows,
    "recurrent": Recurrent,
    "denoiser": Denoiser,
    "heads": Heads,
}
Loss = Callable[[Any, Tensor], Tensor]


def _heads_loss(outputs: Any, wanted: Tensor) -> Tensor:
    digit, centre, spread = outputs
    return functional.cross_entropy(digit, wanted[:, 0].long()) + functional.mse_loss(
        torch.cat([centre, spread], 1), wanted[:, 1:]
    )


def fitted(model: nn.Module, x: Any, y: Any, loss: Loss, epochs: int, *, rate: float = 4e-3) -> nn.Module:
    """Trains a module: Adam, the rate falling to 0 along a cosine, batches of 64, all drawn from one seed."""
    inputs = [torch.from_numpy(v) for v in (x.values() if isinstance(x, dict) else [x])]
    wanted, generator = torch.from_numpy(y), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(wanted), generator=generator).split(64):  # type: ignore[no-untyped-call]
            optimizer.zero_grad()
            loss(model(*(v[batch] for v in inputs)), wanted[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        schedule.step()
    return model.eval()


def kept(name: str, make: Callable[[], nn.Module], train: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """The module, trained once and read from build/verify after that."""
    path = CACHE / f"{name}.safetensors"
    torch.manual_seed(0)
    model = make()
    if path.is_file():
        model.load_state_dict(load_file(path))
        return model.eval()
    trained = train(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({n: v.contiguous() for n, v in trained.state_dict().items()}, path)
    return trained


def digits(name: str, seed: int = 0) -> Network:
    """A network trained on scans of digits, some ten seconds; another seed gives another version of it."""
    scans = ew.digits.load()
    batches = list(scans.data.train)
    x = np.concatenate([np.asarray(b[0], np.float32) for b in batches])
    y = np.concatenate([np.asarray(b[1], np.int64) for b in batches])
    held, labels = scans.x_test, scans.y_test
    loss: Loss = functional.cross_entropy
    wanted: Any = y
    if name == "denoiser":
        noise = np.random.default_rng(0).normal(0, 0.15, (len(x) + len(held), 1, 8, 8)).astype(np.float32)
        x, wanted, loss = x + noise[: len(x)], x, functional.mse_loss
        held = held + noise[len(x) :]
    if name == "heads":
        wanted, loss = np.concatenate([y[:, None].astype(np.float32), moments(x)], 1), _heads_loss

    def made() -> nn.Module:
        torch.manual_seed(seed)
        return DIGITS[name]()

    model = kept(f"{name}-{seed}", made, lambda m: fitted(m, x, wanted, loss, 40))
    classes = name not in {"denoiser", "heads"}
    return Network(
        name=name,
        model=model,
        calibration={"x": x[:CALIBRATION]},
        held={"x": held},
        labels=labels if classes else None,
        train=({"x": x}, y) if classes else None,
    )


# Known networks on real data


def resnet8(folder: Path) -> Network:
    """MLPerf Tiny's image classifier with its weights, on CIFAR-10; pixels are 0..255."""
    from image_classifier import DATA, images

    path = folder / "resnet8.onnx"
    onnx.save(onnx_of(DATA / "mlperf_tiny" / "pretrainedResnet.tflite"), path)
    (train, _), (test, labels) = ((255 * (x / 4 + 0.5), y) for x, y in (images("train"), images("test")))
    return Network(
        name="resnet8",
        model=path,
        calibration={"x": train[:CALIBRATION]},
        held={"x": test[:HELD]},
        labels=labels[:HELD],
    )


def cepstra(log_mel: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The first ten cepstral coefficients of log-mel energies (N, 1, T, B): (N, 1, T, 10), by the DCT-II."""
    bands = log_mel.shape[-1]
    angles = np.pi / bands * (np.arange(bands)[:, None] + 0.5) * np.arange(10)
    found: npt.NDArray[np.float32] = (log_mel @ np.cos(angles).astype(np.float32)) / np.float32(bands**0.5)
    return found


def spoken() -> tuple[npt.NDArray[np.float32], npt.NDArray[Any], npt.NDArray[np.float32], npt.NDArray[Any]]:
    """Spoken digits as log-mel energies: to train on and to test on."""
    from keyword_spotter import load

    speech = load()
    batches = list(speech.data.train)
    x, y = (np.concatenate([np.asarray(b[i]) for b in batches]) for i in (0, 1))
    return x.astype(np.float32), y.astype(np.int64), speech.x_test, speech.y_test


def ds_cnn() -> Network:
    """MLPerf Tiny's keyword spotter (12 outputs, 49 x 10 coefficients), trained on spoken digits."""
    x, y, held, labels = spoken()
    x, held = cepstra(x), cepstra(held)
    make = next(n for n in NETWORKS if n.name == "ds-cnn").make
    loss: Loss = functional.cross_entropy
    model = kept("ds_cnn", make, lambda m: fitted(m, x, y, loss, 12))
    return Network(
        name="ds_cnn",
        model=model,
        calibration={"x": x[:CALIBRATION]},
        held={"x": held},
        labels=labels,
        train=({"x": x}, y),
    )


def keywords() -> Network:
    """The example's small keyword spotter on log-mel energies."""
    from keyword_spotter import student

    x, y, held, labels = spoken()
    loss: Loss = functional.cross_entropy
    model = kept("keywords", student, lambda m: fitted(m, x, y, loss, 12, rate=1e-2))
    return Network(
        name="keywords",
        model=model,
        calibration={"x": x[:CALIBRATION]},
        held={"x": held},
        labels=labels,
        train=({"x": x}, y),
    )


def mobilenet(size: int = 48) -> Network:
    """MobileNetV2, trained for two minutes to tell machines from animals on a part of CIFAR-10, at 48 pixels.

    Args:
        size: Of its images; 224 is what others measure it with.
    """
    from image_classifier import images

    (train, y), (test, labels) = images("train"), images("test")
    train, test = train[:4000], test[:HELD]
    y, labels = (np.isin(part, MACHINES).astype(np.int64) for part in (y[:4000], labels[:HELD]))

    def enlarged(x: npt.NDArray[np.float32], size: int = size) -> npt.NDArray[np.float32]:
        return functional.interpolate(torch.from_numpy(x / 2), (size, size), mode="bilinear").numpy()

    def make() -> nn.Module:
        model = next(n for n in NETWORKS if n.name == "mobilenetv2").module()
        assert isinstance(model, nn.Sequential)
        model[-1] = nn.Linear(1280, 2)
        return model.eval()

    loss: Loss = functional.cross_entropy
    model = kept("mobilenetv2", make, lambda m: fitted(m, enlarged(train, 48), y, loss, 3, rate=2e-3))
    return Network(
        name="mobilenetv2",
        model=model,
        calibration={"x": enlarged(train[:64])},
        held={"x": enlarged(test if size == 48 else test[:100])},
        labels=labels if size == 48 else labels[:100],
    )


def minilm(length: int = 32) -> Network:
    """MiniLM-L6, fine-tuned on SST-2: hard for 8 bits."""
    from minilm import minilm as trained
    from sst2 import sentences, tokens

    texts, _ = sentences("train")
    dev, labels = sentences("dev")
    return Network(
        name="minilm",
        model=trained(),
        calibration=tokens(texts[:CALIBRATION], length),
        held=tokens(dev[:HELD], length),
        labels=labels[:HELD],
    )


def sentiment(length: int = 24) -> Network:
    """A small encoder of tokens with a mask, trained on phrases of SST-2: for several lengths."""
    from minilm import Encoder
    from sst2 import sentences, tokens

    texts, classes = sentences("train")
    order = np.random.default_rng(0).permutation(len(texts))[:12_000]
    x, y = tokens([texts[i] for i in order], length), classes[order]
    dev, labels = sentences("dev")

    def make() -> nn.Module:
        return Encoder(layers=2, hidden=64, heads=4, inner=128, positions=64)

    loss: Loss = functional.cross_entropy
    model = kept("sentiment", make, lambda m: fitted(m, x, y, loss, 3, rate=2e-3))
    return Network(
        name="sentiment",
        model=model,
        calibration={n: v[:CALIBRATION] for n, v in x.items()},
        held=tokens(dev[:HELD], length),
        labels=labels[:HELD],
    )
