"""A recipe: how to compress a model, as frozen data that is saved as TOML.

A part that is None is a step that is not taken. A recipe file holds ``name``, ``seed`` and one section for
each step that is::

    name = "digits"
    seed = 0

    [distill]
    epochs = 12
    temperature = 4.0

    [prune]
    ratio = 0.3
"""

import difflib
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args, get_origin, get_type_hints

import tomli_w

from edgewright.errors import RecipeError
from edgewright.search_space import Space, probes


def _number(
    default: float, low: float, high: float = math.inf, *, above: bool = False, below: bool = False
) -> Any:
    """Declares a number in low..high; `above` and `below` leave the ends out."""
    return field(default=default, metadata={"bounds": (low, high, above, below)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How to train: AdamW (Loshchilov & Hutter 2019), warm-up, then a cosine down to zero.

    Attributes:
        epochs: Passes over the training data.
        learning_rate: The peak, reached after the warm-up.
        weight_decay: Decoupled decay; biases and normalisation parameters have none.
        warmup: The part of all steps, 0..1, over which the learning rate rises from zero.
        label_smoothing: The probability, 0..1, taken from the label and spread over all classes
            (Szegedy et al. 2016).
    """

    epochs: int = _number(10, 1)
    learning_rate: float = _number(2e-3, 0, above=True)
    weight_decay: float = _number(1e-2, 0)
    warmup: float = _number(0.1, 0, 1, below=True)
    label_smoothing: float = _number(0.0, 0, 1, below=True)

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerLoss:
    """One layer of the student that is compared with one of the teacher, in `[[distill.layers]]`.

    Attributes:
        student: Its name, as in `named_modules()`.
        teacher: The other's.
        loss: "hint" (its values, through a learned projection where widths differ: Romero et al. 2015),
            "attention" (where a convolution looks: Zagoruyko & Komodakis 2017), "self_attention" (how a
            transformer's queries, keys or values relate: Wang et al. 2021), "relation" (distances and angles
            between samples: Park et al. 2019) or "similarity" (between samples: Tung & Mori 2019).
        weight: What it is multiplied with.
        heads: Relation heads of "self_attention"; both widths must be multiples of it.
    """

    student: str
    teacher: str
    loss: Literal["hint", "attention", "self_attention", "relation", "similarity"] = "hint"
    weight: float = _number(1.0, 0, above=True)
    heads: int = _number(8, 1)

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progressive:
    """Distillation that starts with much help and ends with none, in `[distill.progressive]`.

    Attributes:
        inherit: Start from the teacher's own weights: each tensor of the student is cut out of the teacher's
            of the same name (Weight selection, Xu et al. 2024).
        until: The part of all steps, 0..1, over which help falls: the weights of `layers` to 0, the
            temperature to 1 (as in Jafari et al. 2021). Then the labels alone teach, and the teacher is not
            run.
    """

    inherit: bool = True
    until: float = _number(0.5, 0, 1, above=True)

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Distill(Training):
    """How to teach a student from a teacher's outputs (Hinton, Vinyals & Dean 2015).

    Attributes:
        epochs: Passes over the training data. 0 takes no step before pruning: this then only says how
            [finetune] learns from the teacher, such as a pruned model from what it was.
        temperature: Softens both outputs before they are compared.
        alpha: Weight, 0..1, of the teacher's outputs; the rest goes to the labels.
        layers: Layers that are compared too.
        mask: The argument of `forward`, (N, length), that is 0 where a sequence is padding: what layers say
            there is not compared. Empty if there is none.
        progressive: Start with more help, and end with none; or None.
    """

    epochs: int = _number(10, 0)
    temperature: float = _number(4.0, 0, above=True)
    alpha: float = _number(0.7, 0, 1)
    layers: tuple[LayerLoss, ...] = ()
    mask: str = ""
    progressive: Progressive | None = None

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prune:
    """What to take away: whole dependent groups at a time (DepGraph, Fang et al. 2023).

    With a budget, `speedup` or `latency_ms`, each layer gets the width at which the model, in INT8 on this
    machine's native engine, one sample on one thread, is fast enough at the least importance lost. Narrower
    copies of the model are measured for that.

    Attributes:
        ratio: The part of the channels to remove, 0..1; without meaning where there is a budget.
        heads: The part of the heads of attention to remove, 0..1; with a budget, the most of one layer.
        blocks: How many residual blocks to remove, those without which the loss rises least.
        importance: What makes a channel or head worth keeping: "taylor" (what the loss would lose to first
            order, Molchanov et al. 2019; needs data), "hessian" (to second order, by the Fisher information,
            Theis et al. 2018; needs data), "batch_norm" (its scale, Liu et al. 2017) or "magnitude" (L2 norm
            of its weights).
        ranking: "uniform" takes the same part of each layer; "global" ranks the channels of all layers, and
            the heads of all attention, together.
        max_ratio: The most that one layer may lose of its channels or heads under "global", and of its
            channels under a budget, 0..1.
        round_to: Channel counts are kept to multiples of this, where a layer is wide enough for it.
        steps: Removes in so many rounds, weighing anew before each.
        batches: Training batches that are weighed by.
        speedup: How many times as fast the model must become; 0 is no budget.
        latency_ms: How many milliseconds a run may take; 0 is no budget.
        samples: Copies of other widths that are measured for a budget.
        measurements: A file that keeps them for the next time; "" is none.
    """

    ratio: float = _number(0.3, 0, 1, below=True)
    heads: float = _number(0.0, 0, 1, below=True)
    blocks: int = _number(0, 0)
    importance: Literal["taylor", "hessian", "batch_norm", "magnitude"] = "taylor"
    ranking: Literal["uniform", "global"] = "uniform"
    max_ratio: float = _number(0.8, 0, 1, above=True, below=True)
    round_to: int = _number(1, 1)
    steps: int = _number(1, 1)
    batches: int = _number(8, 1)
    speedup: float = _number(0.0, 0)
    latency_ms: float = _number(0.0, 0)
    samples: int = _number(12, 4)
    measurements: str = ""

    def __post_init__(self) -> None:
        _check(self)
        if self.speedup and self.latency_ms:
            raise ValueError("speedup: there is a `latency_ms` already; a budget is one of them")
        if 0 < self.speedup <= 1:
            raise ValueError(f"speedup: {self.speedup:g} is out of range; it must be above 1, or 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finetune(Training):
    """How to train once more after pruning, when little should change."""

    epochs: int = _number(5, 1)
    learning_rate: float = _number(1e-3, 0, above=True)

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Qat(Training):
    """How to train with fake quantization, on the grids that `quantize` asks for.

    The float model that enters this step is its teacher.

    Attributes:
        temperature: Softens both outputs before they are compared.
        alpha: Weight, 0..1, of the float model's outputs; the rest goes to the labels.
    """

    epochs: int = _number(3, 1)
    learning_rate: float = _number(5e-5, 0, above=True)
    temperature: float = _number(2.0, 0, above=True)
    alpha: float = _number(0.9, 0, 1)

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantize:
    """How weights and activations become integers at export.

    Attributes:
        calibration: How an activation's range is chosen from samples: "minmax" (all that was seen),
            "percentile" (clips the rarest), "mse" (least squared error), "entropy" (keeps most of the
            distribution, Migacz 2017).
        percentile: The part of the values, in percent, that "percentile" keeps.
        activations: Their integers: "uint8"; "mixed", with int16 where sums, norms and softmax read, as in a
            transformer, and uint8 where layers do; "int16", wherever the engine has it; or "auto": int16
            where it gains most for its cost, until `min_sqnr_db` holds.
        min_sqnr_db: For "auto": signal to quantization noise ratio, dB, of outputs on calibration samples.
        keep_float: Layers, such as "layers.0.up", that stay in floating point; ONNX Runtime runs them.
        equalize: Makes the weights of neighbouring layers equally large (Nagel et al. 2019).
        smooth: Moves outlier channels of activations into the weights that read them (Xiao et al. 2023): by
            "fixed" as far as `smooth_alpha` says, by "search" as far as is best for each layer.
        smooth_alpha: For "fixed": how much moves into the weights, 0..1.
        correct_bias: Takes off the biases what quantization adds to the mean of each output (Nagel et al.
            2019).
        overflow_safe: Chooses weights whose products may be added in 16 bits, "pairs" or "quads" of them at a
            time, which CPUs with AVX2 but no VNNI multiply fastest; "off" lets them be.
        weights: Their integers: "int8"; "int4" wherever a layer can have them, which halves them; or "auto",
            int4 as far as the outputs bear it: 3 dB of signal to noise, or down to 25 dB.
        rounding: Which integers stand for the weights: the "nearest", or by "gptq" those that keep a layer's
            results on the calibration samples (Frantar et al. 2023).
        update: With a base, the artifact now on the devices: "exact" keeps its grids and chooses integers as
            if it was not there; "small" chooses them near to the base's, so that little has to be sent.
        update_loss: By how much "small" may raise the relative entropy to the float model's outputs, in nats
            per sample; of outputs that are no scores of classes, the squared error over the variance.
    """

    calibration: Literal["minmax", "percentile", "mse", "entropy"] = "minmax"
    percentile: float = _number(99.99, 50, 100, above=True)
    activations: Literal["uint8", "mixed", "int16", "auto"] = "uint8"
    min_sqnr_db: float = _number(30.0, 0, 100, above=True)
    keep_float: tuple[str, ...] = ()
    equalize: bool = False
    smooth: Literal["off", "fixed", "search"] = "off"
    smooth_alpha: float = _number(0.5, 0, 1)
    correct_bias: bool = False
    overflow_safe: Literal["off", "pairs", "quads"] = "off"
    weights: Literal["int8", "int4", "auto"] = "int8"
    rounding: Literal["nearest", "gptq"] = "nearest"
    update: Literal["exact", "small"] = "exact"
    update_loss: float = _number(1e-3, 0)

    def __post_init__(self) -> None:
        _check(self)

    def for_floats(self) -> list[str]:
        """The keys that are set and want a trained float model, not one that has integers already."""
        wanted = {
            'activations = "auto"': self.activations == "auto",
            "keep_float": bool(self.keep_float),
            "equalize": self.equalize,
            f'weights = "{self.weights}"': self.weights != "int8",
            "smooth": self.smooth != "off",
            "correct_bias": self.correct_bias,
        }
        return [name for name, on in wanted.items() if on]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to compress a model.

    Attributes:
        name: For people, and for file names.
        seed: Fixes every random choice: the same recipe on the same machine gives the same weights.
        distill: Train the model from a teacher first, or None.
        prune: Then remove channels, or None.
        finetune: Then train once more, or None.
        qat: Then train with fake quantization, or None.
        quantize: How export turns the result into integers.
        search: What a search may vary of all this, or None.
    """

    name: str
    seed: int = _number(0, 0, 2**63, below=True)
    distill: Distill | None = None
    prune: Prune | None = None
    finetune: Finetune | None = None
    qat: Qat | None = None
    quantize: Quantize = field(default_factory=Quantize)
    search: Space | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        _check(self)
        if not self.name.strip():
            raise ValueError("name: is empty")
        if self.qat is not None and self.quantize.rounding != "nearest":
            raise ValueError(
                "quantize.rounding: with [qat], weights learn on the integers nearest to them; leave out one"
            )
        if self.qat is not None and (wanted := self.quantize.for_floats()):
            raise ValueError(
                f"quantize: with [qat], leave out {', '.join(wanted)}; training takes their place"
            )
        if self.search is not None:
            _check_space(self.search)

    @classmethod
    def from_toml(cls, source: Path | str) -> Self:
        """Reads a recipe.

        Args:
            source: The path of a TOML file; or TOML text (a string with a line break or an equals sign).

        Raises:
            RecipeError: The file cannot be read, is not TOML, or has an unknown section or key, a wrong type
                or a value out of range.
        """
        if isinstance(source, str) and ("\n" in source or "=" in source):
            where, text = "recipe", source
        else:
            where = str(source)
            try:
                text = Path(source).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise RecipeError(f"{where}: cannot read this recipe: {error}") from error
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(f"{where}: not valid TOML: {error}") from error
        return _read(cls, table, where, section="")

    def to_toml(self) -> str:
        """Writes the recipe as TOML text that `from_toml` reads back to an equal recipe."""
        table = _without_none(asdict(self))
        if self.search is not None:
            table["search"] = self.search.to_table()
        return tomli_w.dumps(table)


def _without_none(table: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in table.items()
        if value is not None
    }


T = TypeVar("T", bound="Recipe | Training | LayerLoss | Progressive | Prune | Quantize")


def _read(kind: type[T], table: Mapping[str, Any], where: str, *, section: str) -> T:
    """Builds a dataclass, and the parts in it, from a TOML table."""
    place = f"{where}, [{section}]" if section else where
    types = get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in types:
            noun = "section" if isinstance(value, Mapping) else "key"
            raise RecipeError(f"{place}: unknown {noun} {key!r}; {_nearest(key, types)}")
        name = f"{section}.{key}" if section else key
        part = PARTS.get(name)
        if kind is Distill and key == "layers":
            values[key] = _read_layers(value, where)
        elif kind is Recipe and key == "search" and isinstance(value, Mapping):
            values[key] = _read_space(value, place)
        elif part is None:
            values[key] = value
        elif isinstance(value, Mapping):
            values[key] = _read(part, value, where, section=name)
        else:
            raise RecipeError(f"{place}: {key!r} is a section: write [{name}] and its keys below it")
    if kind is Recipe and "name" not in values:
        raise RecipeError(f"{place}: key 'name' is missing; add name = \"...\" at the top")
    for end in ("student", "teacher"):
        if kind is LayerLoss and end not in values:
            raise RecipeError(f"{place}: key {end!r} is missing; name a layer of the {end}")
    try:
        return kind(**values)
    except ValueError as error:
        raise RecipeError(f"{place}: {error}") from error


def _read_layers(value: Any, where: str) -> tuple[LayerLoss, ...]:
    if not isinstance(value, list) or not all(isinstance(each, Mapping) for each in value):
        raise RecipeError(f"{where}: 'layers' is a list of sections: write [[distill.layers]] for each pair")
    return tuple(_read(LayerLoss, each, where, section="[distill.layers]") for each in value)


def _read_space(table: Mapping[str, Any], place: str) -> Space:
    try:
        return Space.from_table(table)
    except ValueError as error:
        raise RecipeError(f"{place}, [search]: {error}") from error


PARTS: Mapping[str, type[Training | Progressive | Prune | Quantize]] = {
    "distill": Distill,
    "distill.progressive": Progressive,
    "prune": Prune,
    "finetune": Finetune,
    "qat": Qat,
    "quantize": Quantize,
}


def _nearest(key: str, known: Iterable[str]) -> str:
    """Names the valid key that was probably meant, or all of them."""
    close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"


def _check(part: Recipe | Training | LayerLoss | Progressive | Prune | Quantize) -> None:
    """Checks each field's type and range, and makes whole numbers floats where a float is meant.

    Raises:
        ValueError: A field is of the wrong type or out of range; the message begins with its name.
    """
    types = get_type_hints(type(part))
    for each in fields(part):
        object.__setattr__(part, each.name, _checked(each, getattr(part, each.name), types[each.name]))


def _checked(each: Field[Any], value: Any, wanted: Any) -> Any:
    """The value as the type wanted, within the bounds of its field."""
    value = _typed(each.name, value, wanted)
    if "bounds" in each.metadata:
        low, high, above, below = each.metadata["bounds"]
        if not low <= value <= high or (above and value == low) or (below and value == high):
            span = f"{'above' if above else 'at least'} {low:g}"
            if math.isfinite(high):
                span += f" and {'below' if below else 'at most'} {high:g}"
            raise ValueError(f"{each.name}: {value!r} is out of range; it must be {span}")
    return value


def _check_space(space: Space) -> None:
    """Checks that a recipe has what a search varies, and may have the values it would try."""
    for section, keys in space.sections.items():
        if section not in PARTS:
            raise ValueError(f"search: there is no section {section!r}; {_nearest(section, PARTS)}")
        known, types = {each.name: each for each in fields(PARTS[section])}, get_type_hints(PARTS[section])
        for key, varied in keys.items():
            if key not in known:
                raise ValueError(f"search.{section}: unknown key {key!r}; {_nearest(key, known)}")
            for value in probes(varied):
                try:
                    _checked(known[key], value, types[key])
                except ValueError as error:
                    raise ValueError(f"search.{section}.{error}") from None


def _typed(name: str, value: Any, wanted: Any) -> Any:
    """Returns the value as the type wanted, without guessing: only int -> float and list -> tuple."""
    if wanted is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if not math.isfinite(value):
                raise ValueError(f"{name}: {value!r} is not a finite number")
            return float(value)
    elif get_origin(wanted) is Literal:
        if any(value == choice and type(value) is type(choice) for choice in get_args(wanted)):
            return value
        allowed = ", ".join(repr(choice) for choice in get_args(wanted))
        raise ValueError(f"{name}: {value!r} is not one of {allowed}")
    elif get_origin(wanted) is tuple:
        kind = get_args(wanted)[0]
        listed = isinstance(value, Sequence) and not isinstance(value, str)
        if listed and all(isinstance(item, kind) for item in value):
            return tuple(value)
        raise ValueError(f"{name}: {value!r} is not a sequence of {kind.__name__}")
    elif isinstance(value, wanted) and not (wanted is int and isinstance(value, bool)):
        return value
    label = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}.get(
        wanted, str(wanted)
    )
    raise ValueError(f"{name}: {value!r} is not {label}")
