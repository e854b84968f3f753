"""The audit: what a run says of itself, checked from what it saved, by code that training does not use."""

from tandem.audit.run import audit, audit_model, audit_run_dir, failures

__all__ = ["audit", "audit_model", "audit_run_dir", "failures"]
