"""Certified ensembles: RobBoost.

`member_lines` bounds each member, `fit_weights` finds the weights whose certified
margins are the largest, `upper_bound` how much better any could be, `ensemble_margin`
what is certified with them; `averaged` is the ensemble as one function.
"""

from ._ensemble_margin import averaged as averaged
from ._ensemble_margin import ensemble_margin as ensemble_margin
from ._ensemble_margin import member_lines as member_lines
from ._ensemble_weights import Ensemble as Ensemble
from ._ensemble_weights import fit_weights as fit_weights
from ._ensemble_weights import upper_bound as upper_bound
