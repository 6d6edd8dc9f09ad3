"""From certificates, estimates and margins to verdicts."""

from wellposed.verify.audit import AuditSummary as AuditSummary
from wellposed.verify.audit import Comparison as Comparison
from wellposed.verify.audit import audit as audit
