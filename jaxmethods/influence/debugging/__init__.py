"""Corrects a classifier from a handful of examples of what it gets wrong.

`debug` fine-tunes it until they are right, by one of the methods that keep more or less
of what it could do before; the one that keeps most adds a few original examples
*in danger*, which `find_in_danger` finds: right before, wrong after. `grouped` makes
loss and predictions of labels that stand for groups of classes. `loss_rise` tells in
advance, to first order, which original examples a correction will hurt.
"""

from ._danger import InDanger as InDanger
from ._danger import find_in_danger as find_in_danger
from ._danger import loss_rise as loss_rise
from ._debug import Debugged as Debugged
from ._debug import debug as debug
from ._groups import Grouped as Grouped
from ._groups import grouped as grouped
