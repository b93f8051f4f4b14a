"""Which training example moved a prediction: TracIn for any loss written in JAX.

`tracin` scores every pair of training and test examples; `proponents` and `opponents`
find the strongest of them without the matrix of scores; `self_influence` scores
examples on themselves (mislabelled and memorised ones lead), `aggregate` training
examples on a weighted sum of test losses. `words` scores texts by the words they share,
`word_shares` splits that over the words, `trace_sgd` credits each step of a training
run to its example. `datastore` keeps gradients, sketched, on disk to be asked again.
`adam_preconditioner` is what Adam multiplies its steps by, `forms` tells how the
gradient of each parameter is taken. `debugging` corrects a classifier from a handful of
examples of what it gets wrong.
"""

from . import debugging as debugging
from ._aggregate import aggregate as aggregate
from ._datastore import Datastore as Datastore
from ._datastore import datastore as datastore
from ._forms import Form as Form
from ._forms import forms as forms
from ._preconditioner import adam_preconditioner as adam_preconditioner
from ._ranking import TopK as TopK
from ._store import Store as Store
from ._top import opponents as opponents
from ._top import proponents as proponents
from ._trace_sgd import Trace as Trace
from ._trace_sgd import trace_sgd as trace_sgd
from ._tracin import self_influence as self_influence
from ._tracin import tracin as tracin
from ._words import word_shares as word_shares
from ._words import words as words
