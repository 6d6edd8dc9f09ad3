"""Training: one visible loop, checkpoints that survive anything, metrics as JSON lines."""

from wellposed.training.certified import ConvexMixLoss as ConvexMixLoss
from wellposed.training.certified import CrownIntervalLoss as CrownIntervalLoss
from wellposed.training.certified import IntervalLoss as IntervalLoss
from wellposed.training.certified import Ramp as Ramp
from wellposed.training.certified import SmallBoxLoss as SmallBoxLoss
from wellposed.training.checkpoint import load_weights as load_weights
from wellposed.training.checkpoint import save_weights as save_weights
from wellposed.training.data import Examples as Examples
from wellposed.training.evaluation import accuracy as accuracy
from wellposed.training.evaluation import predictions as predictions
from wellposed.training.interrupt import InterruptedRunError as InterruptedRunError
from wellposed.training.interval import interval_rule as interval_rule
from wellposed.training.loop import Penalty as Penalty
from wellposed.training.loop import fit as fit
from wellposed.training.objective import CrossEntropy as CrossEntropy
from wellposed.training.objective import Objective as Objective
from wellposed.training.recipe import Recipe as Recipe
