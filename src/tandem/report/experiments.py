"""Two experiments on one text: what both have, compared over seeds and documents as within a report."""

from pathlib import Path
from typing import Any, NamedTuple

from tandem.errors import RunDirError
from tandem.records import read_audit, read_experiment, read_manifest
from tandem.report.analysis import Analysis, Comparison, compare_pairs
from tandem.report.tables import comparison_figures


class ComparedExperiments(NamedTuple):
    """Two experiments: every configuration and baseline that both have, the second's against the first's.

    comparisons  one family; both models of each have one name.
    only         names that the first and the second alone have results of.
    untrusted    names compared of which the audit failed for a run.
    """

    run_dirs: tuple[Path, Path]
    comparisons: tuple[Comparison, ...]
    only: tuple[list[str], list[str]]
    untrusted: list[str]

    def as_json(self) -> dict[str, Any]:
        """All figures; losses are over the common seeds, in nats per token."""
        models = [{"name": c.b, "nll_nats": c.nll.means, **comparison_figures(c)} for c in self.comparisons]
        return {**self._asdict(), "comparisons": models}


def compare_experiments(*run_dirs: Path) -> ComparedExperiments:
    """The second of two experiments against the first.

    Raises RunDirError where there are not two, where one has no records or mixed ones, where their texts or
    tokens differ, and where they have nothing in common.
    """
    if len(run_dirs) != 2:
        raise RunDirError(f"give two run directories to compare, not {len(run_dirs)}")
    both = [Analysis(read_experiment(d), read_manifest(d), read_audit(d)) for d in run_dirs]
    if mixed := [str(d) for d, one in zip(run_dirs, both, strict=True) if not one.comparable]:
        raise RunDirError(f"{mixed[0]} has records of several data or settings; give another one")
    which = " and ".join(map(str, run_dirs))
    for what, name in (("text", "text_fingerprint"), ("tokens", "tokens_fingerprint")):
        first, second = (getattr(next(iter(one.data)), name) for one in both)
        if first != second:
            raise RunDirError(
                f"{which} differ in {what} ({first}, {second}); losses compare on the same {what}"
            )
    ours, theirs = ({name: m for name, m in one.models.items() if m.validation} for one in both)
    common = [name for name in ours if name in theirs]
    if not common:
        raise RunDirError(f"{which} have no configuration or baseline with results in common; give others")
    return ComparedExperiments(
        (run_dirs[0], run_dirs[1]),
        compare_pairs((ours[name], theirs[name]) for name in common),
        ([name for name in ours if name not in common], [name for name in theirs if name not in common]),
        [name for name in common if any(one.untrusted(name) for one in both)],
    )
