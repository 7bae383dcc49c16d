"""Two passes with different dropout shall agree."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from headstart.methods._attack import still
from headstart.methods._checks import number
from headstart.methods._rows import weighted
from headstart.protocols import Context, Method, Task
from headstart.values import View


@dataclass
class RDrop(Method):
    """Passes each row twice with different dropout and makes the two answers agree.

    Equation: alpha / 2 * mean_i (KL(p_i || q_i) + KL(q_i || p_i)), p and q the answers of the two passes. With several
    labels a row p and q are one Bernoulli distribution a label, and the mean over labels is taken; for regression the
    distance is the mean over targets of the squared difference (Gaussian answers of unit variance, both divergences
    added and halved, give one half of it).

    Source: Wu et al. 2021 (R-Drop), section 2, equations 2 and 3. There the loss of the labels is taken of both passes;
    here of the first alone, which has the same expectation and more noise, and leaves the loss to the task.

    Requires: something random in the network: dropout (`dropout` sets its rate), `depth` or `mixout`. Without it both
    passes agree and the run says that the method changed nothing.

    Shapes: outputs (N,K) of two passes -> a scalar.

    Neighbours: as a penalty it composes with `fgm`, `pgd` and `sam`, whose changed rows it then also passes twice;
    their passes without dropout cost it nothing. Two passes a micro-batch. The second moves no BatchNorm statistics.

    Example: `--method rdrop:alpha=1`; `hs.methods.RDrop(alpha=1.0)`.

    Defaults: alpha = 1 is the largest of the values among which the paper chooses for GLUE (0.1, 0.5, 1).

    alpha: strength of the agreement.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        number("rdrop:alpha", self.alpha, 0, "such as alpha=1; leave the method out for none", above=True)

    def passes(self) -> float:
        """The rows, and the rows again."""
        return 2.0

    def penalty(self, view: View, ctx: Context) -> dict[str, Tensor]:
        """`rdrop`: the scaled distance of the two answers; 0 in a pass that draws no dropout."""
        if not view.model.training:
            return {"rdrop": view.outputs.sum() * 0.0}
        with ctx.autocast(), still(view.model):
            _, again = view.model(view.batch)
        return {"rdrop": self.alpha * weighted(_by_task(view, again.float(), ctx.task), view.batch)}


def _by_task(view: View, again: Tensor, task: Task) -> Tensor:
    """(N,): each row's distance in the outputs of its own task."""
    if not task.members:
        return _distance(view.outputs, again, task.name)
    found = view.outputs.new_zeros(len(again))
    for member in task.members:
        rows = (view.batch.origin == member.index).nonzero()[:, 0]
        own = _distance(view.outputs[rows][:, member.columns], again[rows][:, member.columns], member.task.name)
        found = found.index_add(0, rows, own)
    return found


def _distance(a: Tensor, b: Tensor, task: str) -> Tensor:
    """(N,). The sum of both divergences is sum_k (p_k - q_k) (log p_k - log q_k), here halved."""
    if task == "regression":
        return (a - b).square().mean(1)
    if task == "multilabel":
        return 0.5 * ((a.sigmoid() - b.sigmoid()) * (a - b)).mean(1)
    p, q = functional.log_softmax(a, 1), functional.log_softmax(b, 1)
    return 0.5 * ((p.exp() - q.exp()) * (p - q)).sum(1)
