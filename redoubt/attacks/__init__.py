"""Attacks: functions from (model, x, y, threat) to adversarial inputs inside the threat model and inside [0, 1].

`ATTACKS` names those that need nothing but the model. `transfer` needs a surrogate as well.
"""

from redoubt.attacks.gradient import fgsm, momentum_pgd, pgd
from redoubt.attacks.lattice import holds_whole_levels, on_lattice
from redoubt.attacks.transfer import transfer
from redoubt.errors import one_of

ATTACKS = {"fgsm": fgsm, "pgd": pgd, "momentum": momentum_pgd}


def get_attack(name: str):
    """The attack called `name`.

    Raises:
        InvalidInput: naming the valid ones.
    """
    return ATTACKS[one_of(name, ATTACKS, "attack")]


__all__ = ["ATTACKS", "fgsm", "get_attack", "holds_whole_levels", "momentum_pgd", "on_lattice", "pgd", "transfer"]
