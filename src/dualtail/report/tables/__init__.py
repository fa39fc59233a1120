"""The tables of a run, built once for every format."""

from dualtail.report.report_table import ReportTable
from dualtail.report.tables.features import disagreement_table, neighbors_table
from dualtail.report.tables.groups import groups_table, own_groups_table
from dualtail.report.tables.members import cross_table, members_table, prior_correlation_table, priors_table
from dualtail.report.tables.methods import comparisons_table, methods_table, subset_sizes_table, subsets_table
from dualtail.runs.finished import RunResults

_BUILDERS = (
    members_table,
    priors_table,
    prior_correlation_table,
    cross_table,
    groups_table,
    own_groups_table,
    methods_table,
    comparisons_table,
    subsets_table,
    subset_sizes_table,
    neighbors_table,
    disagreement_table,
)


def run_tables(results: RunResults) -> list[ReportTable]:
    """Return every table of a run that has something in it."""
    return [table for build in _BUILDERS if (table := build(results))]
