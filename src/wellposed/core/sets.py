"""Sets of vectors: boxes, and balls in the 2-norm."""

from wellposed.core.balls import Ball as Ball
from wellposed.core.boxes import Box as Box

Region = Box | Ball
