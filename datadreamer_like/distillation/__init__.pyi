from .losses import Divergence as Divergence
from .losses import divergence as divergence
from .losses import hard_target_loss as hard_target_loss
from .losses import soft_target_loss as soft_target_loss
from .losses import supervised_loss as supervised_loss
from .objectives import HardTargets as HardTargets
from .objectives import Objective as Objective
from .objectives import SoftTargets as SoftTargets
from .objectives import Supervised as Supervised
from .teacher import Teacher as Teacher
from .teacher import TeacherModel as TeacherModel
from .teacher import align_labels as align_labels
from .teacher import check_same_vocabulary as check_same_vocabulary
from .teacher import teacher_logits_for_texts as teacher_logits_for_texts
from .teacher import teacher_logits_for_tokens as teacher_logits_for_tokens

__all__: list[str] = [
    "Divergence",
    "HardTargets",
    "Objective",
    "SoftTargets",
    "Supervised",
    "Teacher",
    "TeacherModel",
    "align_labels",
    "check_same_vocabulary",
    "divergence",
    "hard_target_loss",
    "soft_target_loss",
    "supervised_loss",
    "teacher_logits_for_texts",
    "teacher_logits_for_tokens",
]
