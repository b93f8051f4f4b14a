"""Which training example moved a prediction: TracIn for any loss written in JAX.

`tracin` scores every pair of training and test examples, `self_influence` examples on
themselves (mislabelled and memorised ones lead), `aggregate` training examples on a
weighted sum of test losses. `forms` tells how the gradient of each parameter is taken.
"""

from ._aggregate import aggregate as aggregate
from ._forms import Form as Form
from ._forms import forms as forms
from ._tracin import self_influence as self_influence
from ._tracin import tracin as tracin
