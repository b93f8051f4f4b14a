"""What can a function reach, for every input (or weight) in a set?

Sets stand where arrays would: `Ball`, `Box`, their `Intersection`, `Substitutions` of
words, the `quantization_box` round weights. `ibp` carries intervals through any
function, `crown_ibp` adds a linear bound of the outputs, `crown` one for every value
inside, `alpha_crown` optimises its choices; `forward` suits few inputs and many
outputs, `taylor` small sets of few inputs. `linear_bounds` gives the planes. `margins`
turns logits into what has to stay positive. `register_rule` adds a primitive.

Sets are pytrees: `jax.vmap(bound.crown(fn), (bound.Ball(0, None),))` takes a ball whose
center has a batch axis. `Bounds` turn into a set by `Box(*bounds)`.

On top of them: `radius` and `word_radius` search how far a label holds, `verify`
decides it for one set, `robust_loss` trains for it, `lipschitz` and `monotonicity` say
how fast and in which direction a function changes.

Bounds are rounded outward: what the arithmetic of the bound itself may have lost is
added, so that they hold in float32 as in float64.
"""

from . import ensemble as ensemble
from ._derivatives import Monotonicity as Monotonicity
from ._derivatives import lipschitz as lipschitz
from ._derivatives import monotonicity as monotonicity
from ._extension import custom_bounds as custom_bounds
from ._extension import monotone as monotone
from ._extension import s_shaped as s_shaped
from ._margins import margins as margins
from ._methods import LinearBounds as LinearBounds
from ._methods import alpha_crown as alpha_crown
from ._methods import crown as crown
from ._methods import crown_ibp as crown_ibp
from ._methods import forward as forward
from ._methods import ibp as ibp
from ._methods import linear_bounds as linear_bounds
from ._planes import Lines as Lines
from ._planes import Planes as Planes
from ._quantization import quantization_box as quantization_box
from ._radius import radius as radius
from ._registry import register_rule as register_rule
from ._robust_loss import beta_schedule as beta_schedule
from ._robust_loss import eps_schedule as eps_schedule
from ._robust_loss import robust_loss as robust_loss
from ._sets import Ball as Ball
from ._sets import Bounds as Bounds
from ._sets import Box as Box
from ._sets import Intersection as Intersection
from ._sets import Substitutions as Substitutions
from ._taylor import taylor as taylor
from ._verify import Verdict as Verdict
from ._verify import verify as verify
from ._verify import verifying as verifying
from ._words import WordRadii as WordRadii
from ._words import word_radius as word_radius
