"""How much a Gram matrix can be zeroed out or quantized and still tell two classes.

A function f of one entry turns x^T x into f(x^T x / sqrt p) / sqrt p, less its
diagonal. Of n samples of p features in large numbers, three numbers of f decide all:

`linear`, `sparsify`, `binarize`, `quantize_entries`, `relu` and `uniform` are functions
that know theirs; `moments` integrates those of any other. `predict` says how well the
top eigenvector clusters, `density` and `edges` where the other eigenvalues lie,
`spurious` which eigenvalues mean nothing. `best_threshold` loses least, `cheapest`
finds the fewest bits for an error. `transformed_gram` makes the matrix (`uniform_mask`
its mask), `clustering` clusters with it and need not store it.
"""

from ._bulk import density as density
from ._bulk import edges as edges
from ._bulk import spurious as spurious
from ._clustering import Clustering as Clustering
from ._clustering import clustering as clustering
from ._entrywise import Entrywise as Entrywise
from ._entrywise import binarize as binarize
from ._entrywise import linear as linear
from ._entrywise import quantize_entries as quantize_entries
from ._entrywise import relu as relu
from ._entrywise import sparsify as sparsify
from ._entrywise import uniform as uniform
from ._gram import transformed_gram as transformed_gram
from ._gram import uniform_mask as uniform_mask
from ._moments import Moments as Moments
from ._moments import moments as moments
from ._prediction import Prediction as Prediction
from ._prediction import predict as predict
from ._thresholds import Choice as Choice
from ._thresholds import best_threshold as best_threshold
from ._thresholds import cheapest as cheapest
