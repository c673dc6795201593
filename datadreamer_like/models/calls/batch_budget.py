"""Budgets of batches: what one may cost is reserved before it is submitted, and stays so until its results are here.

The reservation is the batch's, not the process's: it outlives a kill, and is replaced by the cost once.
"""

from __future__ import annotations

from typing import Any, Self

from .budget import Paid, Purse, check_budget


class BatchBudget:
    """The budgets that the batches of one model must keep."""

    def __init__(self, model: Paid) -> None:
        self._model, self._purse = model, Purse(model)

    @classmethod
    def of(cls, model: Paid) -> Self | None:
        """Returns the budgets of a model; None if it has none."""
        return cls(model) if check_budget(model) else None

    def most(self, request: Any) -> int:
        """Returns the most that a row can cost; raises `BadRequest` if its prompt passes a whole budget."""
        return self._purse.most(self._model, request)

    def room(self) -> int:
        """Returns what is neither spent nor reserved, in dollars of 10⁻⁹."""
        account = self._purse.account
        return min(limit.most - limit.spent(account) - limit.reserved(account) for limit in self._purse.limits)

    def hold(self, label: str, amount: int) -> bool:
        """Reserves the worst case of a batch, once; returns False if it does not fit any more."""
        return self._purse.short_of(amount, _holder(label)) is None

    def pay(self, label: str, cost: int) -> None:
        """Replaces what is reserved for a batch by what it cost; does nothing if that was done."""
        for ledger in self._purse.ledgers():
            ledger.pay(self._purse.account, 0, cost, _holder(label))

    def check(self, amount: int) -> None:
        """Raises `OverBudget` if an amount does not fit and no other process has reserved some of the budget."""
        account = self._purse.account
        for limit in self._purse.limits:
            short = limit.spent(account) + limit.reserved(account) + amount > limit.most
            if short and (not limit.reserved(account) or limit.spent(account) + amount > limit.most):
                raise self._purse.over(limit, amount)

    def close(self) -> None:
        """Closes the ledgers."""
        self._purse.close()


def _holder(label: str) -> str:
    return f"batch-{label}"
