"""How far can a trained classifier be trusted?

`audit` asks of any `apply(params, x)` all that the sections below ask, and returns a
`Report`, which prints, and whose `write` makes a page and a JSON; `jaxmethods audit` is
the same as a command. `accuracy` is how often it is right, as it is and under attack,
`certificates` how often that is proven within a radius, `quantized` with weights of few
bits. `labels` ranks examples whose labels look wrong, `memory` says what a device would
hold if the model were trained on several.
"""

from .accuracy import Accuracy as Accuracy
from .accuracy import accuracy as accuracy
from .certificates import Certificates as Certificates
from .certificates import certificates as certificates
from .labels import Labels as Labels
from .labels import Suspect as Suspect
from .labels import labels as labels
from .memory import Layout as Layout
from .memory import Memory as Memory
from .memory import memory as memory
from .quantized import Quantized as Quantized
from .quantized import quantized as quantized
from .report import AuditConfig as AuditConfig
from .report import Report as Report
from .report import audit as audit
