"""What does training in few bits cost, and how little can it be?

A quantizer is a frozen value: `q(key, x)` rounds an array to 2^bits levels by chance,
so that the expectation is `x`, and `q(None, x)` to the nearest. `ptq` takes one range
for the whole array, `psq` one for each sample, `bhq` spreads large samples over small
ones first; `variance` tells the noise of each without drawing it, and `q.quantize`
gives packed codes, a `QTensor`. A `Policy` names the quantizers of a network. `qat` and
`fqt` apply it to any function, and `gradient_noise` tells, parameter by parameter, what
that does to the gradient and how many bits would do.

NaN is never lost: a NaN (or infinite) entry makes NaN of all that shares its grid, its
row in `psq`, the whole array in `ptq` and `bhq`; so does a range beyond 4e37.
"""

from ._bhq import bhq as bhq
from ._noise import Noise as Noise
from ._noise import gradient_noise as gradient_noise
from ._policy import Policy as Policy
from ._psq import psq as psq
from ._ptq import ptq as ptq
from ._qtensor import QTensor as QTensor
from ._quantizer import Quantizer as Quantizer
from ._transforms import fqt as fqt
from ._transforms import qat as qat
from ._variance import variance as variance
