"""Schemas of all records, and how they are written and read. `tandem.records(RUN_DIR)` calls this module."""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from tandem.records.audit import AuditRecord as AuditRecord
from tandem.records.audit import Check as Check
from tandem.records.audit import RunAudit as RunAudit
from tandem.records.audit import read_audit as read_audit
from tandem.records.audit import write_audit as write_audit
from tandem.records.files import MADE_AGAIN as MADE_AGAIN
from tandem.records.files import Manifest as Manifest
from tandem.records.files import append_record as append_record
from tandem.records.files import read_experiment as read_experiment
from tandem.records.files import read_manifest as read_manifest
from tandem.records.files import read_records as read_records
from tandem.records.files import records_path as records_path
from tandem.records.files import write_manifest as write_manifest
from tandem.records.run import ContextsRecord as ContextsRecord
from tandem.records.run import DataRecord as DataRecord
from tandem.records.run import DocumentScores as DocumentScores
from tandem.records.run import Environment as Environment
from tandem.records.run import Epoch as Epoch
from tandem.records.run import MemoryPoint as MemoryPoint
from tandem.records.run import Parameters as Parameters
from tandem.records.run import PartRecord as PartRecord
from tandem.records.run import Phase1Record as Phase1Record
from tandem.records.run import Precision as Precision
from tandem.records.run import RateTrial as RateTrial
from tandem.records.run import Record as Record
from tandem.records.run import RunRecord as RunRecord
from tandem.records.run import ScanRecord as ScanRecord
from tandem.records.run import TrainingRecord as TrainingRecord
from tandem.records.run import Unbounded as Unbounded
from tandem.records.run import ValidationRecord as ValidationRecord
from tandem.records.run import perplexity as perplexity


class _Callable(ModuleType):
    def __call__(self, run_dir: Any) -> Any:
        return import_module("tandem.records.table").records_table(run_dir)


sys.modules[__name__].__class__ = _Callable
