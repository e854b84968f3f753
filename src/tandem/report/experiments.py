"""Two experiments on one text: what both have, compared over seeds and documents as within a report."""

from pathlib import Path
from typing import Any, NamedTuple

from tandem.errors import RunDirError
from tandem.records import read_audit, read_experiment, read_manifest
from tandem.report.analysis import Analysis, Comparison, compare_pairs
from tandem.report.tables import comparison_figures


class ComparedExperiments(NamedTuple):
    """Two experiments, and every configuration and baseline that both have results of."""

    run_dirs: tuple[Path, Path]
    comparisons: tuple[Comparison, ...]
    """Of each model by its name: the second experiment's against the first's, all as one family."""
    only: tuple[list[str], list[str]]
    """What the first and the second alone have results of."""
    untrusted: frozenset[str]
    """Models compared of which the audit failed for a run."""

    def as_json(self) -> dict[str, Any]:
        """All figures; losses are over the common seeds, in nats per token."""
        models = [
            {
                "name": c.b,
                "audit_failed": c.b in self.untrusted,
                "nll_nats": c.nll.means,
                **comparison_figures(c),
            }
            for c in self.comparisons
        ]
        return {"run_dirs": self.run_dirs, "models": models, "only": self.only}


def compare_experiments(first: Path, second: Path) -> ComparedExperiments:
    """The second experiment against the first.

    Raises RunDirError where a directory has no records or mixed ones, where their texts or tokens differ, and
    where they have nothing in common.
    """
    a, b = (_analysis(run_dir) for run_dir in (first, second))
    (of_a, *_), (of_b, *_) = a.data, b.data
    for what, name in (("text", "text_fingerprint"), ("tokens", "tokens_fingerprint")):
        if (one := getattr(of_a, name)) != (other := getattr(of_b, name)):
            raise RunDirError(
                f"{first} and {second} do not have the same {what} ({one} and {other}), so their losses do "
                f"not compare; give two experiments on the same {what}"
            )
    ours, theirs = ({name: m for name, m in one.models.items() if m.validation} for one in (a, b))
    common = [name for name in ours if name in theirs]
    if not common:
        raise RunDirError(
            f"{first} and {second} have no configuration or baseline with results in common; "
            "give two experiments that share one"
        )
    return ComparedExperiments(
        (first, second),
        compare_pairs((ours[name], theirs[name]) for name in common),
        ([name for name in ours if name not in common], [name for name in theirs if name not in common]),
        frozenset(name for name in common if a.untrusted(name) or b.untrusted(name)),
    )


def _analysis(run_dir: Path) -> Analysis:
    analysis = Analysis(read_experiment(run_dir), read_manifest(run_dir), read_audit(run_dir))
    if not analysis.comparable:
        raise RunDirError(
            f"records of {run_dir} differ in data or settings; give the directory of one experiment"
        )
    return analysis
