"""How differently a layer of the student and one of the teacher see the same batch.

Each loss takes what the two layers gave, float (N, ...), and gives a scalar, the mean over the samples. A
layer gives maps (N, C, H, W), tokens (N, L, C) or vectors (N, C). Where tokens come with a mask, those that
are padding count for nothing.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgewright.errors import CompressError
from edgewright.recipe import LayerLoss

ANGLES = 2.0
"""Weight of angles over distances in "relation" (Park et al. 2019, section 4.1: 50 to 25)."""


class Compared(nn.Module):
    """One `LayerLoss`, with the projection that it learns.

    Args:
        how: Which layers, and which loss.
        student: What the student's layer gives for some batch.
        teacher: What the teacher's layer gives for the same.

    Raises:
        CompressError: The loss is not made for these shapes.
    """

    def __init__(self, how: LayerLoss, student: Tensor, teacher: Tensor) -> None:
        super().__init__()
        self.how = how
        self.projection: nn.Module | None = None
        _check_shapes(how, student, teacher)
        widths = _width(student), _width(teacher)
        if how.loss == "hint" and widths[0] != widths[1]:
            if student.ndim == 4:
                self.projection = nn.Conv2d(*widths, 1, bias=False)
            else:
                self.projection = nn.Linear(*widths, bias=False)

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """Returns the loss times its weight.

        Args:
            student: What the student's layer gave.
            teacher: What the teacher's layer gave.
            mask: 0 where a token is padding, (N, L), or None.
        """
        if student.ndim != 3 or mask is None or mask.shape != student.shape[:2]:
            mask = None
        match self.how.loss:
            case "hint":
                seen = student if self.projection is None else self.projection(student)
                loss = hint_loss(seen, teacher, mask)
            case "attention":
                loss = attention_loss(student, teacher)
            case "self_attention":
                loss = self_attention_loss(student, teacher, self.how.heads, mask)
            case "relation":
                loss = relation_loss(_kept(student, mask), _kept(teacher, mask))
            case "similarity":
                loss = similarity_loss(_kept(student, mask), _kept(teacher, mask))
        return self.how.weight * loss


def hint_loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Returns the mean square error over the teacher's mean square, of layers of one width.

    FitNets (Romero et al. 2015, equation 3), but for the division: with it, a weight means the same for every
    layer. Maps of different size are averaged down to the smaller.
    """
    if student.ndim == 4:
        student, teacher = _one_size(student, teacher)
    if mask is not None:
        student, teacher = _kept(student, mask), _kept(teacher, mask)
    return functional.mse_loss(student, teacher) / teacher.square().mean().clamp(min=1e-12)


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Returns the square distance of two attention maps, each of length 1; both (N, C, H, W).

    A map is the sum of squares over the channels (Zagoruyko & Komodakis 2017, equation 2 with p = 2). Maps of
    different size are averaged down to the smaller.
    """

    def attended(maps: Tensor) -> Tensor:
        return functional.normalize(maps.square().mean(1).flatten(1), dim=1)

    student, teacher = _one_size(student, teacher)
    return (attended(student) - attended(teacher)).square().sum(1).mean()


def self_attention_loss(student: Tensor, teacher: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Returns ``KL(teacher ‖ student)`` of the relations between tokens, the mean over heads and tokens.

    The relation of queries (or keys, or values) is ``softmax(A Aᵀ / √d)`` in each of `heads` slices of the
    width, so that networks with other widths and numbers of attention heads can be compared (MiniLMv2, Wang
    et al. 2021, equations 5 to 7; of values alone, MiniLM, Wang et al. 2020).
    """

    def relations(tokens: Tensor) -> Tensor:
        n, length, width = tokens.shape
        sliced = tokens.reshape(n, length, heads, width // heads).transpose(1, 2)
        scores = sliced @ sliced.transpose(2, 3) / (width // heads) ** 0.5
        if mask is not None:
            scores = scores.masked_fill(mask[:, None, None, :] == 0, -1e9)
        return functional.log_softmax(scores, dim=3)

    divergence = functional.kl_div(relations(student), relations(teacher), reduction="none", log_target=True)
    of_tokens = divergence.sum(3).mean(1)
    if mask is None:
        return of_tokens.mean()
    return (of_tokens * mask).sum() / mask.sum()


def relation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Returns how differently two layers place a batch's samples: by distances, and by angles of three.

    Relational knowledge distillation (Park et al. 2019, equations 5 to 10). The features, (N, ...), may
    differ in all but N.
    """

    def distances(rows: Tensor) -> Tensor:
        apart = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
        pairs = max(len(rows) * (len(rows) - 1), 1)
        return apart / (apart.sum() / pairs).clamp(min=1e-12)

    def angles(rows: Tensor) -> Tensor:
        toward = functional.normalize(rows[None] - rows[:, None], dim=2)  # (N, N, C)
        return toward @ toward.transpose(1, 2)

    here, there = student.flatten(1), teacher.flatten(1)
    apart = functional.smooth_l1_loss(distances(here), distances(there))
    return apart + ANGLES * functional.smooth_l1_loss(angles(here), angles(there))


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Returns how differently two layers see a batch: the mean square difference of (N, N) similarities.

    Each row of similarities has length 1 (Tung & Mori 2019, equations 2 to 4). The features, (N, ...), may
    differ in all but N.
    """

    def similarities(features: Tensor) -> Tensor:
        rows = features.flatten(1)
        return functional.normalize(rows @ rows.T, dim=1)

    return functional.mse_loss(similarities(student), similarities(teacher), reduction="sum") / len(student)


def _check_shapes(how: LayerLoss, student: Tensor, teacher: Tensor) -> None:
    problem = ""
    wanted = {"hint": (2, 3, 4), "attention": (4,), "self_attention": (3,)}.get(how.loss)
    if wanted is not None and (student.ndim not in wanted or teacher.ndim != student.ndim):
        forms = ("maps (N, C, H, W)", "tokens (N, L, C)", "vectors (N, C)")
        problem = f"it takes two layers that give {' or '.join(forms[4 - n] for n in reversed(wanted))}"
    elif wanted is not None and student.ndim == 3 and student.shape[1] != teacher.shape[1]:
        problem = "both must have the same tokens"
    elif how.loss == "self_attention" and (_width(student) % how.heads or _width(teacher) % how.heads):
        problem = f"both widths must be multiples of heads, which is {how.heads}"
    if problem:
        raise CompressError(
            f"layers {how.student!r} and {how.teacher!r}, of shapes {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}, cannot be compared by {how.loss!r}: {problem}"
        )


def _one_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    return functional.adaptive_avg_pool2d(student, size), functional.adaptive_avg_pool2d(teacher, size)


def _kept(tokens: Tensor, mask: Tensor | None) -> Tensor:
    return tokens if mask is None else tokens * mask[:, :, None]


def _width(features: Tensor) -> int:
    return features.shape[1] if features.ndim == 4 else features.shape[-1]
