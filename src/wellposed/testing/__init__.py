"""The conformance kit: checks that outsiders run on their own parts."""

from wellposed.testing.rules import RuleReport as RuleReport
from wellposed.testing.rules import check_rule as check_rule
