"""Equilibrium networks whose output exists, is unique and depends stably on the input."""

from wellposed.cells.base import AffineCell as AffineCell
from wellposed.cells.base import Cell as Cell
from wellposed.cells.nemon import NemonCell as NemonCell
from wellposed.cells.nemon import NemonConv2d as NemonConv2d
from wellposed.gradients.implicit import Implicit as Implicit
from wellposed.nn.equilibrium import Equilibrium as Equilibrium
from wellposed.nn.equilibrium import fixed_point as fixed_point
from wellposed.solvers.base import Solution as Solution
from wellposed.solvers.base import Status as Status
from wellposed.solvers.base import Stopping as Stopping
from wellposed.solvers.picard import Averaged as Averaged
from wellposed.solvers.picard import Jacobi as Jacobi
from wellposed.solvers.picard import Picard as Picard
