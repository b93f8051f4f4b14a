"""How far can a model be led astray inside a small ball around its input?

`pgd` raises any per-input loss with a step size that you choose; `apgd` attacks a
classifier and chooses the step itself. Both are pure functions of traced radii: one
`vmap` over `eps` is a robustness curve, one over keys gives restarts, and `strongest`
keeps the best of them in an `Attack`.

Which one? For training, a few steps of `pgd` (a step of eps / 4, or eps for one step).
To evaluate, `apgd` with the objectives "ce" and "dlr", some 100 steps each, and the
inputs that both leave robust.
"""

from .apgd import apgd as apgd
from .attack import Attack as Attack
from .attack import strongest as strongest
from .pgd import pgd as pgd
