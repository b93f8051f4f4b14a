"""What should be on which device, and what must travel between devices?

Compressed exchange: a `Codec` turns gradients into small messages and remembers what it
left out: `adacomp`, `dct`, `top_k`, `int8`, `sign`, `dense`, or what `compose` makes of
a selector, a value code and an index code. `exchange` makes an optax step of it, by
messages to all; `two_phase_exchange` sends them in two phases, `graph_exchange` to
neighbours, `mean_exchange` no messages but the mean; `auto` chooses by a model of the
link and says why. `nbytes` counts a message, `wire` what any compiled function sends.
Between layers `threshold_cut` zeroes what is small, and `cut_gather` sends the rest.

Averages with a few neighbours: `graph` says who sends to whom, `spectral_gap` how fast
that mixes, `stochastic_reduce` is one round, of the matrix `mixing_matrix`;
`decentralized` trains with it. `run_workers` does the same in processes that run at
their own speed and wait for their `Neighbours` alone, `join_workers` between hosts.

Hybrid parallelism: `splitbrain` reads the layers of any loss and returns a `Plan`:
convolutions replicated, wide dense layers split over a group; `plan` also shards
layers fully, where asked or where memory is short; `column_dense`, `row_dense` and
`modulo_layer` are the same by hand, inside `shard_map`.

Both together: `hybrid_training` runs a plan with an optimizer that exchanges.

Many processes: `initialize` joins them; `resize` hands what workers owe to another
number of them.
"""

from ._adacomp import AdaCompState as AdaCompState
from ._adacomp import adacomp as adacomp
from ._auto import Candidate as Candidate
from ._auto import Choice as Choice
from ._auto import auto as auto
from ._codec import Codec as Codec
from ._codec import nbytes as nbytes
from ._compose import FeedbackState as FeedbackState
from ._compose import compose as compose
from ._cut_gather import cut_gather as cut_gather
from ._dct import dct as dct
from ._decentralized import DecentralizedState as DecentralizedState
from ._decentralized import decentralized as decentralized
from ._dense import column_dense as column_dense
from ._dense import row_dense as row_dense
from ._exchange import exchange as exchange
from ._exchange import mean_exchange as mean_exchange
from ._graph_exchange import graph_exchange as graph_exchange
from ._graph_families import graph as graph
from ._graphs import Graph as Graph
from ._graphs import mixing_matrix as mixing_matrix
from ._graphs import spectral_gap as spectral_gap
from ._index_codes import BitMask as BitMask
from ._index_codes import IndexCode as IndexCode
from ._index_codes import Int32Places as Int32Places
from ._index_codes import LocalPlaces as LocalPlaces
from ._initialize import initialize as initialize
from ._modulo import modulo_layer as modulo_layer
from ._neighbours import Neighbours as Neighbours
from ._neighbours import Transport as Transport
from ._plan import Plan as Plan
from ._plan import PlanRow as PlanRow
from ._planning import plan as plan
from ._resize import resize as resize
from ._run_workers import run_workers as run_workers
from ._selectors import AboveThreshold as AboveThreshold
from ._selectors import Everything as Everything
from ._selectors import Largest as Largest
from ._selectors import LocalBins as LocalBins
from ._selectors import Selection as Selection
from ._selectors import Selector as Selector
from ._small_values import dense as dense
from ._small_values import int8 as int8
from ._small_values import sign as sign
from ._socket_slots import join_workers as join_workers
from ._splitbrain import splitbrain as splitbrain
from ._stochastic_reduce import stochastic_reduce as stochastic_reduce
from ._threshold_cut import quantile_threshold as quantile_threshold
from ._threshold_cut import threshold_cut as threshold_cut
from ._top_k import top_k as top_k
from ._training import Training as Training
from ._training import hybrid_training as hybrid_training
from ._training import local_gradients as local_gradients
from ._two_phase import TwoPhaseState as TwoPhaseState
from ._two_phase import two_phase_exchange as two_phase_exchange
from ._value_codes import BFloat16 as BFloat16
from ._value_codes import Float32 as Float32
from ._value_codes import Int8Blocks as Int8Blocks
from ._value_codes import OneBit as OneBit
from ._value_codes import Ternary as Ternary
from ._value_codes import ValueCode as ValueCode
from ._wire import Wire as Wire
from ._wire import wire as wire
from ._worker_errors import WorkerFailed as WorkerFailed
from ._worker_errors import WorkerLost as WorkerLost
from ._worker_errors import WorkerTimeout as WorkerTimeout
