from .born_again import BornAgain as BornAgain
from .distillation_loop import DistillationLoop as DistillationLoop
from .lottery_ticket import LotteryTicket as LotteryTicket
from .self_training import SelfTraining as SelfTraining
