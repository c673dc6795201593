from .label_suspects import LabelSuspects as LabelSuspects
from .label_suspects import label_suspects as label_suspects
from .quality import paired_differences as paired_differences
