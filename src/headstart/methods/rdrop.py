"""Two passes with different dropout shall agree."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from headstart.methods._attack import still
from headstart.methods._checks import number
from headstart.methods._distance import of_task, symmetric
from headstart.methods._rows import weighted
from headstart.protocols import Context, Method
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
        half = 1.0 if ctx.task.name == "regression" else 0.5
        distance = half * of_task(symmetric, view.outputs, again.float(), ctx.task)
        return {"rdrop": self.alpha * weighted(distance, view.batch)}
