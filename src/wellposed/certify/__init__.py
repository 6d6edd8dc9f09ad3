"""Certificates: proved bounds, measured on explicit weights."""

from wellposed.certify import binary as binary  # registers rules and refusals
from wellposed.certify import concave as concave  # registers rules
from wellposed.certify import explicit as explicit  # registers rules
from wellposed.certify import lben as lben  # registers rules
from wellposed.certify import lben_conv as lben_conv  # registers rules
from wellposed.certify import lowering as lowering  # registers rules
from wellposed.certify import normalise as normalise  # registers its rule
from wellposed.certify import order_equilibria as order_equilibria  # registers rules
from wellposed.certify import order_rules as order_rules  # registers rules
from wellposed.certify import residual as residual  # registers rules
from wellposed.certify import rules as rules  # registers the rules
from wellposed.certify import sorting as sorting  # registers rules
from wellposed.certify import subhomogeneous as subhomogeneous  # registers rules
from wellposed.certify import tilted as tilted  # registers rules
from wellposed.certify.affine import bound_l0 as bound_l0
from wellposed.certify.affine import bound_l1 as bound_l1
from wellposed.certify.affine import bound_l2 as bound_l2
from wellposed.certify.affine import bound_l3 as bound_l3
from wellposed.certify.affine import bound_l4 as bound_l4
from wellposed.certify.box import EquilibriumBox as EquilibriumBox
from wellposed.certify.box import equilibrium_box as equilibrium_box
from wellposed.certify.chain import Chain as Chain
from wellposed.certify.contraction import contraction as contraction
from wellposed.certify.enclose import enclose as enclose
from wellposed.certify.enclose import enclose_rule as enclose_rule
from wellposed.certify.lipschitz import Site as Site
from wellposed.certify.lipschitz import infer_shape as infer_shape
from wellposed.certify.lipschitz import lipschitz as lipschitz
from wellposed.certify.lipschitz import lipschitz_rule as lipschitz_rule
from wellposed.certify.majorant import Linear as Linear
from wellposed.certify.majorant import Majorant as Majorant
from wellposed.certify.majorant import Rearrangement as Rearrangement
from wellposed.certify.majorant import Slopes as Slopes
from wellposed.certify.margins import box_certified as box_certified
from wellposed.certify.margins import box_margins as box_margins
from wellposed.certify.maximum import Maximum as Maximum
from wellposed.certify.order import OrderCertificate as OrderCertificate
from wellposed.certify.order import order as order
from wellposed.certify.order import order_rule as order_rule
from wellposed.certify.penalty import lipschitz_penalty as lipschitz_penalty
from wellposed.certify.penalty import spread as spread
from wellposed.certify.penalty import surrogate_penalty as surrogate_penalty
