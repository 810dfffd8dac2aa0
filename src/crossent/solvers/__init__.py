"""Solvers for convex losses, which reach the optimum and say how near it is."""

from crossent.solvers.newton_cg import NewtonCG, Step
from crossent.solvers.objective import Objective
from crossent.solvers.solution import Solution, minimize

__all__ = ["NewtonCG", "Objective", "Solution", "Step", "minimize"]
