"""What can a function reach, for every input (or weight) in a set?

Sets stand where arrays would: `Ball`, `Box`. `ibp` carries intervals through any
function, `crown_ibp` adds a linear bound of the outputs, `crown` one for every value
inside; `linear_bounds` gives the planes. `margins` turns logits into what has to stay
positive. `register_rule` adds a primitive.

Bounds are rounded outward: what the arithmetic of the bound itself may have lost is
added, so that they hold in float32 as in float64.
"""

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
from ._registry import register_rule as register_rule
from ._sets import Ball as Ball
from ._sets import Bounds as Bounds
from ._sets import Box as Box
