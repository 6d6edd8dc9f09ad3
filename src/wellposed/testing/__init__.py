"""The conformance kit: checks that outsiders run on their own parts."""

from wellposed.testing.cells import CellReport as CellReport
from wellposed.testing.cells import check_cell as check_cell
from wellposed.testing.gradients import GradientReport as GradientReport
from wellposed.testing.gradients import check_gradient as check_gradient
from wellposed.testing.rules import RuleReport as RuleReport
from wellposed.testing.rules import check_rule as check_rule
from wellposed.testing.solvers import check_solver as check_solver
