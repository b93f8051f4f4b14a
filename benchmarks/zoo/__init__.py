"""The nets that benchmarks share: plain JAX functions with their weights.

`NETS[name]()` draws one: its function of one 28 x 28 image, its parameters, and the
radius of the linf ball that its bounds are taken over. `dense` makes nets of dense
layers, of any widths.
"""

from . import dense as dense
from .nets import NETS as NETS
from .nets import Net as Net
from .nets import cnn as cnn
from .nets import images as images
from .nets import mlp as mlp
from .nets import settled as settled
