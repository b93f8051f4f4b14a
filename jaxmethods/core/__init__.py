"""What every transform stands on: the jaxpr walker, pytree paths, argument checks.

`flatten` turns a function into one flat `Graph`, for transforms that analyse;
`interpret` evaluates a jaxpr with some equations replaced, for transforms that rewrite.
`is_affine` and its like say which nodes of a graph are linear, and `register_linear`
adds a primitive to them.
"""

from ._affine import LinearRule as LinearRule
from ._affine import is_affine as is_affine
from ._affine import is_bilinear as is_bilinear
from ._affine import linear_part as linear_part
from ._affine import linear_rule as linear_rule
from ._affine import offset as offset
from ._affine import register_linear as register_linear
from ._affine import zeros_of as zeros_of
from ._annotated import annotated_call as annotated_call
from ._axis_size import axis_size as axis_size
from ._checks import check_choice as check_choice
from ._checks import check_floating as check_floating
from ._checks import check_fraction as check_fraction
from ._checks import check_integer as check_integer
from ._checks import check_key as check_key
from ._checks import check_nonnegative as check_nonnegative
from ._checks import check_positive as check_positive
from ._checks import describe as describe
from ._checks import is_concrete as is_concrete
from ._control import inline_cond as inline_cond
from ._control import keep_whole as keep_whole
from ._control import reached as reached
from ._control import skip as skip
from ._control import unroll_scan as unroll_scan
from ._convolutions import with_fast_convolutions as with_fast_convolutions
from ._flatten import flatten as flatten
from ._flatten import flatten_body as flatten_body
from ._graph import Graph as Graph
from ._graph import Node as Node
from ._graph import Variable as Variable
from ._graph import live_nodes as live_nodes
from ._interpret import Site as Site
from ._interpret import interpret as interpret
from ._interpret import occurring as occurring
from ._materialized import materialized as materialized
from ._normalizations import match_normalizations as match_normalizations
from ._paths import choose_paths as choose_paths
from ._paths import leaf_paths as leaf_paths
from ._patterns import PATTERNS as PATTERNS
from ._patterns import Pattern as Pattern
from ._patterns import match_patterns as match_patterns
from ._powers import power_of_two as power_of_two
from ._repeats import without_repeats as without_repeats
from ._softmaxes import match_softmax as match_softmax
from ._source import missing_rule as missing_rule
from ._source import source_line as source_line
from ._varying import vary_as as vary_as
from ._varying import vary_together as vary_together
from ._varying import varying_axes as varying_axes
from ._varying import varying_axes_of_type as varying_axes_of_type
from ._versions import ANNOTATED as ANNOTATED
from ._versions import CUSTOM_CALL as CUSTOM_CALL
from ._versions import Body as Body
from ._versions import as_body as as_body
from ._versions import scan_arity as scan_arity
