"""What every transform stands on: the jaxpr walker, pytree paths, argument checks.

`flatten` turns a function into one flat `Graph`, for transforms that analyse;
`interpret` evaluates a jaxpr with some equations replaced, for transforms that rewrite.
"""

from ._checks import check_choice as check_choice
from ._checks import check_floating as check_floating
from ._checks import check_integer as check_integer
from ._checks import check_key as check_key
from ._checks import check_nonnegative as check_nonnegative
from ._checks import describe as describe
from ._checks import is_concrete as is_concrete
from ._flatten import flatten as flatten
from ._graph import Graph as Graph
from ._graph import Node as Node
from ._graph import Variable as Variable
from ._graph import live_nodes as live_nodes
from ._interpret import Site as Site
from ._interpret import interpret as interpret
from ._paths import choose_paths as choose_paths
from ._paths import leaf_paths as leaf_paths
from ._patterns import PATTERNS as PATTERNS
from ._patterns import Pattern as Pattern
from ._patterns import match_patterns as match_patterns
from ._source import missing_rule as missing_rule
from ._source import source_line as source_line
