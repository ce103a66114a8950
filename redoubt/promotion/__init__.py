"""The gate and what follows from it: the policy, the paired tests, the rules, the line of champions. Pure functions."""
