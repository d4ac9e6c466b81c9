"""Progressive distillation: a student that starts as a part of its teacher, and help that falls to none.

Plain distillation starts from random weights and asks the teacher about every batch to the end. Here the help
is strong at first and then goes away, in the order in which it stops being of use: the teacher's own weights
at the start; what its layers see, by a weight that falls; its outputs, by a temperature that falls to 1; and
from then on the labels alone, which makes the rest of the steps cheaper.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from edgewright.errors import CompressError
from edgewright.recipe import Progressive


class Help(nn.Module):
    """How much the teacher helps, by the steps that were made: a buffer, and so a part of a checkpoint.

    Args:
        how: When it ends.
        total: Steps of the whole training.
    """

    steps: Tensor

    def __init__(self, how: Progressive, total: int) -> None:
        super().__init__()
        self._end = how.until * total
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self) -> float:
        """Returns the help in the next step, which it counts: 1 at first, 0 where there is none any more."""
        share = 1 - int(self.steps) / self._end
        self.steps += 1
        return max(share, 0.0)


def inherit(student: nn.Module, teacher: nn.Module) -> list[str]:
    """Starts a student from its teacher's weights, where it is (Weight selection, Xu et al. 2024).

    Each tensor is cut out of the teacher's of the same name, at evenly spaced places along each axis. The
    places depend on the two lengths alone, so a student of the same family becomes a subnetwork of its
    teacher: what one layer gives, the next one takes. Weights of layers are made larger by the share of their
    inputs that is gone, so that sums keep their size. Tensors that the teacher lacks, or that are larger than
    its own, stay as they are, and so do embeddings of another vocabulary.

    Returns:
        The names of what was inherited.

    Raises:
        CompressError: Nothing can be.
    """
    theirs = teacher.state_dict()
    layers = {name: each for name, each in student.named_modules() if isinstance(each, nn.Linear | _ConvNd)}
    tables = {name for name, each in student.named_modules() if isinstance(each, nn.Embedding)}
    found: list[str] = []
    with torch.no_grad():
        for name, mine in student.state_dict().items():
            source, owner = theirs.get(name), name.rpartition(".")[0]
            if source is None or source.ndim != mine.ndim:
                continue
            fits = all(a <= b for a, b in zip(mine.shape, source.shape, strict=True))
            if not fits or (owner in tables and mine.shape[0] != source.shape[0]):
                continue
            part = source
            for axis, length in enumerate(mine.shape):
                places = torch.arange(length, device=source.device) * source.shape[axis] // max(length, 1)
                part = part.index_select(axis, places)
            if owner in layers and mine.ndim >= 2:
                part = part * (source.shape[1] / mine.shape[1])
            mine.copy_(part)
            found.append(name)
    if not found:
        raise CompressError(
            "the student cannot inherit: no tensor of the teacher has the name of one of the student's and "
            "is as large; set inherit = false in [distill.progressive]"
        )
    return found
