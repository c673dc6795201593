"""The schedule of gradual pruning, and what keeps pruned weights zero while a sparse model is retrained."""

from __future__ import annotations

from dataclasses import dataclass

from datadreamer_like.compression.method import check_share
from datadreamer_like.compression.zeros import masks as masks
from datadreamer_like.compression.zeros import reapply as reapply
from datadreamer_like.errors import DefinitionError


def cubic_sparsity(
    step: int, *, final: float, steps: int, initial: float = 0.0, begin: int = 0, every: int = 1
) -> float:
    """Returns the sparsity at a training step of the cubic schedule, which rises fast at first and slowly at the end.

    `s_t = s_f + (s_i - s_f) (1 - (t - t0) / (n dt))^3`. Zhu and Gupta, "To prune, or not to prune", 2017,
    arXiv:1710.01878.

    `step` is t, from 0; `final` and `initial` are s_f and s_i; `steps` is n·dt, its length. It starts
    at `begin`, t0; `every` is dt: between two prunings the sparsity stays.

    Example:
        >>> [round(cubic_sparsity(t, final=0.8, steps=4), 4) for t in range(6)]
        [0.0, 0.4625, 0.7, 0.7875, 0.8, 0.8]
    """
    if steps < 1 or every < 1:
        raise DefinitionError(f"steps={steps} and every={every} must both be at least 1.")
    passed = max(0, step - begin) // every * every
    return final + (initial - final) * (1 - min(1.0, passed / steps)) ** 3


@dataclass(frozen=True)
class Cubic:
    """When weights are removed during a training: `cubic_sparsity` between two shares of its steps.

    Zhu and Gupta 2017, arXiv:1710.01878. The defaults are those of movement pruning for the fine-tuning of encoders.

    Attributes:
        every: Optimizer steps between two changes of the masks; in Zhu and Gupta 100 to 1,000, of many.
        warmup: Share of the steps before the first weight is removed.
        cooldown: Share of the steps after the last weight is removed; the rest of the training makes up for the loss.
        initial: Sparsity at the start of the rise.

    Example:
        >>> schedule = Cubic(warmup=0.0, cooldown=0.5)
        >>> [round(schedule.sparsity(step, steps=8, final=0.8), 4) for step in range(9)]
        [0.0, 0.4625, 0.7, 0.7875, 0.8, 0.8, 0.8, 0.8, 0.8]
    """

    every: int = 1
    warmup: float = 0.1
    cooldown: float = 0.2
    initial: float = 0.0

    def __post_init__(self) -> None:
        for name in ("warmup", "cooldown", "initial"):
            check_share(name, getattr(self, name))
        if type(self.every) is not int or self.every < 1:
            raise DefinitionError(f"every is {self.every!r}; it must be a number of steps, at least 1.")
        if self.warmup + self.cooldown >= 1:
            raise DefinitionError(
                f"warmup={self.warmup} and cooldown={self.cooldown} leave no step to remove weights in. "
                "They are shares of the training; together they must be under 1."
            )

    def bounds(self, steps: int) -> tuple[int, int]:
        """Returns the first and last step of the rise in a training of so many steps; from the last on all is done."""
        begin = round(self.warmup * steps)
        return begin, max(begin + 1, round((1 - self.cooldown) * steps))

    def sparsity(self, step: int, steps: int, final: float) -> float:
        """Returns the sparsity after optimizer step `step` of `steps`."""
        begin, end = self.bounds(steps)
        if step >= end:
            return final
        return cubic_sparsity(step, final=final, initial=self.initial, begin=begin, steps=end - begin, every=self.every)

    def is_due(self, step: int, steps: int) -> bool:
        """Whether masks are chosen anew after optimizer step `step` of `steps`."""
        begin, end = self.bounds(steps)
        return step == end or (step >= begin and (step - begin) % self.every == 0)
