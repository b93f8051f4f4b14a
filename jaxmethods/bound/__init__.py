"""Guaranteed bounds of any JAX function over a set of its arguments."""

from ._margins import margins as margins
from ._methods import LinearBounds as LinearBounds
from ._methods import crown as crown
from ._methods import crown_ibp as crown_ibp
from ._methods import ibp as ibp
from ._methods import linear_bounds as linear_bounds
from ._planes import Lines as Lines
from ._planes import Planes as Planes
from ._registry import register_rule as register_rule
from ._sets import Ball as Ball
from ._sets import Bounds as Bounds
from ._sets import Box as Box
