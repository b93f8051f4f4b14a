"""What should be on which device, and what must travel between devices?

Compressed exchange: a `Codec` turns gradients into small messages and remembers what it
left out; `adacomp` is one. `exchange` makes an optax step of it, `nbytes` counts a
message, `wire` counts what any compiled function sends.

Hybrid parallelism: `splitbrain` reads the layers of any loss and returns a `Plan`:
convolutions replicated, wide dense layers split over a group; `column_dense`,
`row_dense` and `modulo_layer` are the same by hand, inside `shard_map`.

Both together: `hybrid_training` runs a plan with an optimizer that exchanges.
"""

from ._adacomp import AdaCompState as AdaCompState
from ._adacomp import adacomp as adacomp
from ._codec import Codec as Codec
from ._codec import nbytes as nbytes
from ._dense import column_dense as column_dense
from ._dense import row_dense as row_dense
from ._exchange import exchange as exchange
from ._modulo import modulo_layer as modulo_layer
from ._splitbrain import Plan as Plan
from ._splitbrain import PlanRow as PlanRow
from ._splitbrain import splitbrain as splitbrain
from ._training import Training as Training
from ._training import hybrid_training as hybrid_training
from ._training import local_gradients as local_gradients
from ._wire import Wire as Wire
from ._wire import wire as wire
